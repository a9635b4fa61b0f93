"""A bundle behind HTTP: an API, and a page. No torch, nothing on disk, no patient data in logs.

    request --guard.Journal--> --guard.Guard--> app --guard--> bytes --batch_queue--> classifier --> answers
                |                   |                                     |
         id, log line,        token, size,                    bounded queue, micro-batches,
           metrics                time                          a deadline for each image

Every refusal is RFC 9457 problem details with a reason.
"""
