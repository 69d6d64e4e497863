"""A pool of worker processes that works for some seconds; the answer depends on nothing but the arguments.

pool.py TASKS ROUNDS: so many tasks of so many rounds each, done by three workers.
"""

import hashlib
import multiprocessing
import sys


def work(task):
    number, rounds = task
    digest = hashlib.sha256(number.to_bytes(8, "little")).digest()
    table = {}
    for _ in range(rounds):
        digest = hashlib.sha256(digest).digest()
        key = int.from_bytes(digest[:2], "little")
        table[key] = table.get(key, 0) + digest[2]
    return number, sum(key * count for key, count in table.items()), digest


def main():
    tasks, rounds = int(sys.argv[1]), int(sys.argv[2])
    total = hashlib.sha256()
    done = 0
    with multiprocessing.Pool(3) as pool:
        for number, sum_of, digest in pool.imap(work, ((n, rounds) for n in range(tasks)), chunksize=2):
            total.update(number.to_bytes(8, "little") + sum_of.to_bytes(16, "little") + digest)
            done += 1
            if done % 50 == 0:
                print(done, total.hexdigest()[:16], flush=True)
        pool.close()
        pool.join()
    print("answer", done, total.hexdigest())


if __name__ == "__main__":
    main()
