"""The tests of trilift; a package, so that ``tests.fakes`` is ours and not an installed stranger's."""
