"""The folder of the distribution `calotype`, which users install (`pip install ./client`).

The server runs from its tree and imports the same files as `client.calotype`, so that there is one client.
"""
