"""A bundle behind HTTP: an API, and a page. No torch, nothing on disk, no patient data in logs.

    request --journal--> --guard--> app --intake--> bytes --desk--> threads of the classifier --> answers
               |            |                                 |
          id, log line,   token, size,                   bounded queue, micro-batches,
          metrics         time                           a deadline for each picture

What is wrong is told as RFC 9457 problem details with a reason, whoever finds it.
"""
