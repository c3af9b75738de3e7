"""Certificates for published host names, from an authority that speaks ACME (RFC 8555).

plan        what to ask for now, and when to look again; no IO
store       the state folder: account key, certificates, the ledger of what was asked
authority   the protocol, by the library ``acme``, in a worker thread
order       one order: its proofs shown to the authority, by TLS, HTTP or DNS
keeper      the task that has all of these done while a server runs
"""
