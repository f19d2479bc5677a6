"""The agent process: it stands between one trainer and the control plane.

It imports neither torch nor transformers, and forks nothing.

====================  ===========================================================================
``options``           command line and environment.
``main``              composition: puts the parts together and runs them.
``job_agent``         the life of an agent, from its trainer's hello to its own goodbye.
``admission``         which training process an agent serves.
``relay``             what passes between the trainer and the control plane.
``connector``         one session after another, with back-off in between.
``session``           one stream to the control plane: hello, one writer, one reader.
``ledger``            what the agent knows of its trainer and owes the control plane.
``deliveries``        updates on their way to the trainer, and the replies they get.
``samples``           metrics that wait, bounded.
``unacknowledged``    messages kept until the control plane has them on disk.
``trainer_state``     the trainer's full state, kept up with what it says.
``pace``              step times: rate, median, stall.
``revisions``         sets of revisions as ranges.
``backoff``           how long to wait before trying again.
``refusals``          what to do about an error of the control plane.
``background``        work beside the main flow.
``trainer_watch``     notices that the training process is gone.
``exit_status``       how a process that was not a child ended.
====================  ===========================================================================
"""
