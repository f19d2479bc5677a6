"""Light jobs: real clients of the agent protocol that train nothing.

For demonstrations, load and fault tests. A light job declares live parameters, takes steps by a
timer, reports metrics, and is steered, by the very code of a training process and of its agent;
only the training, the local socket and the process of its own are left out. So hundreds to
thousands of them fit into one process::

    async with LightJobs("127.0.0.1:50051", 200, labels={"team": "nlp"}) as jobs:
        print(jobs[0].values["learning_rate"], jobs[0].step)

On the command line: ``midcourse simulate --jobs 200``.

====================  ===========================================================================
``light_jobs``        many of them: start, wait, end, count.
``job``               one of them: its clock, its steps, its end.
``spec``              what one is like.
``link``              what stands in for the socket between a training process and its agent.
``parameters``        what can be changed live.
``curve``             a plausible loss.
``channels``          connections that several share.
``options``           the command line.
``main``              the command: one process, or several.
``display``           what it shows meanwhile.
====================  ===========================================================================
"""

from trainer_agent.simulate.job import LightJob
from trainer_agent.simulate.light_jobs import LightJobs, Totals
from trainer_agent.simulate.spec import LightJobSpec

__all__ = ["LightJob", "LightJobSpec", "LightJobs", "Totals"]
