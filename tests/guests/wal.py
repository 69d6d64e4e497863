"""A database in WAL mode that one process writes and another one reads; the answer depends on nothing but the argument.

wal.py TRANSACTIONS [DATABASE]: each row holds a digest of the row before, so a lost or torn row is found by whoever looks. The
writer does not move the log into the database before the end: what it does to the middle of a file is not undone by a restore.
"""

import hashlib
import os
import sqlite3
import sys
import time

ROWS = 5


def connect(path):
    database = sqlite3.connect(path, isolation_level=None, timeout=60)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=NORMAL")
    database.execute("PRAGMA wal_autocheckpoint=0")
    return database


def follow(rows, digest):
    """The digest of a run of rows, or an error for the first that does not fit."""
    for number, value in rows:
        digest = hashlib.sha256(digest + number.to_bytes(8, "little")).digest()
        if value != digest:
            raise SystemExit(f"row {number} is wrong")
    return digest


def read(path, last):
    """Reads again and again, until it sees the last row. Whatever was committed stays."""
    database = connect(path)
    seen, digest, reads = 0, b"", 0
    while seen < last:
        database.execute("BEGIN")
        rows = database.execute("SELECT number, value FROM rows WHERE number > ? ORDER BY number", (seen,)).fetchall()
        count = database.execute("SELECT count(*) FROM rows").fetchone()[0]
        database.execute("COMMIT")
        if [number for number, _ in rows] != list(range(seen + 1, seen + len(rows) + 1)):
            raise SystemExit(f"after row {seen} come {len(rows)} rows, some of them others")
        digest = follow(rows, digest)
        seen += len(rows)
        if seen != count or count % ROWS:
            raise SystemExit(f"there are {count} rows after {seen}")
        reads += 1
        time.sleep(0.01)
    database.close()


def write(path, transactions):
    database = connect(path)
    digest, number = b"", 0
    for transaction in range(transactions):
        database.execute("BEGIN IMMEDIATE")
        for _ in range(ROWS):
            number += 1
            digest = hashlib.sha256(digest + number.to_bytes(8, "little")).digest()
            database.execute("INSERT INTO rows VALUES (?, ?)", (number, digest))
        database.execute("COMMIT")
        if transaction % 100 == 99:
            print(number, digest.hex()[:16], flush=True)
        time.sleep(0.001)
    return database


def main():
    transactions, path = int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "wal.db"
    first = connect(path)
    first.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, value BLOB NOT NULL)")
    first.close()
    reader = os.fork()
    if reader == 0:
        read(path, transactions * ROWS)
        os._exit(0)
    database = write(path, transactions)
    status = os.waitpid(reader, 0)[1]
    if status:
        raise SystemExit(f"the reader ended with status {status:#x}")
    found = follow(database.execute("SELECT number, value FROM rows ORDER BY number"), b"")
    check = database.execute("PRAGMA integrity_check").fetchone()[0]
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    print("answer", transactions * ROWS, found.hex(), check)


if __name__ == "__main__":
    main()
