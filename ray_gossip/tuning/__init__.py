"""The only home of Ray Tune: sweeps over the keys of the config, a run of a swarm per trial.

`settings`, `space` and `sweep` say what is asked for and load nothing heavy: a mistake is answered at once.
`trial` is the run that Tune drives, `search` says which comes next, `session` puts both together, and `report`
tells what came of it.
"""
