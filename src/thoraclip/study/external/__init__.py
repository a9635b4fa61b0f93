"""External test sets: images from elsewhere, which no method of a study has seen.

[external.NAME] --settings--> External --images--> labelled images under the study's class names
    --overlap--> those whose picture stands nowhere in the study --scoring--> tables of scores --> the judge
"""
