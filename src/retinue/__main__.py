"""`python -m retinue` = `retinue`."""

from retinue.cli.main import main

main()
