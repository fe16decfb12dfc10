"""A PostgreSQL of our own: in a folder that goes with it, reached through a socket in that folder."""
import os
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager
from glob import glob
from pathlib import Path

MB = 2**20
FILE = 64*MB  # bytes, which no file of the server may exceed: to it the disk is full then


def programs():
    "The folder of `initdb` and `postgres`, or None."
    found = shutil.which("initdb")
    folders = sorted(glob("/usr/lib/postgresql/*/bin"), reverse=True) + ([os.path.dirname(os.path.realpath(found))] if found else [])
    return next((f for f in folders if os.access(f"{f}/postgres", os.X_OK)), None)


def _as_nobody(folder):
    "PostgreSQL refuses to run as root: then somebody else owns the folder, and runs it."
    if os.getuid(): return {}
    shutil.chown(folder, "nobody")
    return dict(user="nobody", group=os.stat(folder).st_gid, extra_groups=[])


@contextmanager
def postgres(bin):
    "A server until the block ends: the function that empties its database, and gives its address."
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as folder:
        how, data = dict(cwd=folder, **_as_nobody(folder)), f"{folder}/data"
        run = lambda *command: subprocess.run([f"{bin}/{command[0]}", *command[1:]], check=True, capture_output=True, **how)
        run("initdb", "-D", data, "-U", "bears", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync", "--wal-segsize=1")
        with open(Path(folder, "log"), "w") as told:
            server = subprocess.Popen([f"{bin}/postgres", "-D", data, "-k", folder, "-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_wal_size=32MB"], stdout=told, stderr=told,
                                      preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (FILE, FILE)), **how)
        try:
            end = time.monotonic() + 60
            while subprocess.run([f"{bin}/pg_isready", "-q", "-h", folder], cwd=folder).returncode:
                assert server.poll() is None and time.monotonic() < end, Path(folder, "log").read_text()
                time.sleep(.1)
            run("createdb", "-h", folder, "-U", "bears", "bears")
            def emptied():
                run("psql", "-q", "-h", folder, "-U", "bears", "-c", "DROP SCHEMA public CASCADE", "-c", "CREATE SCHEMA public")
                return f"postgresql+psycopg://bears@/bears?host={folder}"
            yield emptied
        finally:
            server.send_signal(signal.SIGQUIT)  # at once: nobody needs what is in it any more
            server.wait(30)
