"""Where jobs run: the protocol that the runner speaks (:mod:`bench.runner.executors.base`) and those who fulfil it."""
