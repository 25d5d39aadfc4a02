"""Loads an engine directory and serves it: pages, scheduler, runner, sampler, session. Knows the manifest, never the compiler."""
