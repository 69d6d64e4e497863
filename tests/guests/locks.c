/*
 * Locks on files: flock, POSIX, open-file-description locks, leases; held by two processes, and waited for by a third.
 */
#include "guest.h"

#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/wait.h>

static struct shared {
    volatile int child_ready, finish, child_fine, waiter_ready, waiter_has, flock_waiter_ready, flock_waiter_has;
} *shared;

static int open_file(const char *name) {
    char path[PATH_MAX];
    int fd = MUST(open(guest_path(path, name), O_RDWR | O_CREAT, 0600));
    MUST(ftruncate(fd, 1000));
    return fd;
}

static void lock(int fd, int command, short type, off_t start, off_t length) {
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
    MUST(fcntl(fd, command, &lock));
}

/* The type of the lock of somebody else on the range, as who asks sees it. */
static short held(int fd, off_t start, off_t length, pid_t *by) {
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
    MUST(fcntl(fd, F_GETLK, &lock));
    if (by) *by = lock.l_pid;
    return lock.l_type;
}

static bool flock_is_taken(const char *name, int how) {
    char path[PATH_MAX];
    bool is_directory = strcmp(name, ".") == 0;
    int other = MUST(open(guest_path(path, name), is_directory ? O_RDONLY : O_RDWR));
    bool taken = flock(other, how | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    close(other);
    return taken;
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int posix = open_file("posix"), exclusive = open_file("exclusive"), common = open_file("common"), ofd = open_file("ofd");
    int lease = open_file("lease");
    lock(posix, F_SETLK, F_WRLCK, 0, 100);
    lock(posix, F_SETLK, F_RDLCK, 200, 50);
    lock(posix, F_SETLK, F_WRLCK, 900, 0);
    MUST(flock(exclusive, LOCK_EX));
    MUST(flock(common, LOCK_SH));
    lock(ofd, F_OFD_SETLK, F_WRLCK, 10, 5);
    close(lease);
    char path[PATH_MAX];
    lease = MUST(open(guest_path(path, "lease"), O_RDONLY));
    MUST(fcntl(lease, F_SETLEASE, F_RDLCK));
    signal(SIGIO, SIG_IGN);
    /* A write lease; locks on what is no file; one that was removed. */
    int sole = open_file("sole");
    MUST(fcntl(sole, F_SETLEASE, F_WRLCK));
    int directory = MUST(open(guest_dir, O_RDONLY | O_DIRECTORY));
    MUST(flock(directory, LOCK_SH));
    MUST(mkfifo(guest_path(path, "fifo"), 0600));
    int fifo = MUST(open(path, O_RDWR));
    MUST(flock(fifo, LOCK_EX));
    int removed = open_file("removed");
    MUST(unlink(guest_path(path, "removed")));
    MUST(flock(removed, LOCK_EX));
    lock(removed, F_SETLK, F_WRLCK, 5, 6);
    lock(removed, F_OFD_SETLK, F_RDLCK, 50, 6);
    pid_t child = MUST(fork());
    if (child == 0) {
        close(sole);
        /* Locks of its own, beside its parent's; the description of `ofd` is common to both. */
        lock(posix, F_SETLK, F_WRLCK, 300, 10);
        shared->child_ready = 1;
        while (!shared->finish) usleep(2000);
        pid_t by = 0;
        bool fine = held(posix, 0, 10, &by) == F_WRLCK && by == getppid() && held(posix, 200, 10, NULL) == F_RDLCK;
        shared->child_fine = fine ? 1 : 2;
        for (;;) pause();
    }
    pid_t waiter = MUST(fork());
    if (waiter == 0) {
        close(sole);
        shared->waiter_ready = 1;
        struct flock wanted = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 900, .l_len = 10};
        shared->waiter_has = fcntl(posix, F_SETLKW, &wanted) == 0 ? 1 : 2;
        for (;;) pause();
    }
    pid_t flock_waiter = MUST(fork());
    if (flock_waiter == 0) {
        close(sole);
        int own = MUST(open(guest_path(path, "exclusive"), O_RDWR));
        shared->flock_waiter_ready = 1;
        shared->flock_waiter_has = flock(own, LOCK_SH) == 0 ? 1 : 2;
        for (;;) pause();
    }
    while (!shared->child_ready || !shared->waiter_ready || !shared->flock_waiter_ready) guest_sleep_ms(1);
    guest_sleep_ms(20);
    guest_ready();
    while (!guest_finishing()) {
        CHECK(shared->waiter_has == 0, "the waiter: %d", shared->waiter_has);
        guest_step();
        guest_sleep_ms(2);
    }
    shared->finish = 1;
    while (!shared->child_fine) guest_sleep_ms(1);
    CHECK(shared->child_fine == 1, "the child does not see its parent's locks");
    pid_t by = 0;
    CHECK(held(posix, 300, 10, &by) == F_WRLCK && by == child, "the child's lock is held by %d", by);
    CHECK(held(posix, 310, 10, NULL) == F_UNLCK, "the child holds more");
    CHECK(flock_is_taken("exclusive", LOCK_SH), "the exclusive flock");
    CHECK(flock_is_taken("common", LOCK_EX) && !flock_is_taken("common", LOCK_SH), "the shared flock");
    int other = MUST(open(guest_path(path, "ofd"), O_RDWR));
    CHECK(held(other, 10, 1, &by) == F_WRLCK && by == -1, "the description's lock");
    CHECK(held(other, 15, 1, NULL) == F_UNLCK && held(other, 9, 1, NULL) == F_UNLCK, "the description's lock has another range");
    CHECK(fcntl(sole, F_GETLEASE) == F_WRLCK, "the write lease: %d", fcntl(sole, F_GETLEASE));
    CHECK(flock_is_taken(".", LOCK_EX) && !flock_is_taken(".", LOCK_SH), "the lock on the directory");
    CHECK(flock_is_taken("fifo", LOCK_SH), "the lock on the FIFO");
    snprintf(path, sizeof path, "/proc/self/fd/%d", removed);
    int again = MUST(open(path, O_RDWR));
    CHECK(flock(again, LOCK_SH | LOCK_NB) == -1 && errno == EWOULDBLOCK, "the lock on the removed file");
    struct flock asked = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 20};
    MUST(fcntl(again, F_OFD_GETLK, &asked));
    CHECK(asked.l_type == F_WRLCK && asked.l_start == 5 && asked.l_len == 6 && asked.l_pid == getpid(), "the POSIX lock there");
    asked = (struct flock){.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 20, .l_len = 100};
    MUST(fcntl(again, F_OFD_GETLK, &asked));
    CHECK(asked.l_type == F_RDLCK && asked.l_start == 50 && asked.l_len == 6 && asked.l_pid == -1, "the description's lock there");
    CHECK(fcntl(lease, F_GETLEASE) == F_RDLCK, "the lease: %d", fcntl(lease, F_GETLEASE));
    lock(posix, F_SETLK, F_UNLCK, 900, 0);
    for (int i = 0; i < 1000 && !shared->waiter_has; i++) guest_sleep_ms(5);
    CHECK(shared->waiter_has == 1, "the waiter did not get the lock: %d", shared->waiter_has);
    CHECK(shared->flock_waiter_has == 0, "the waiter has the flock: %d", shared->flock_waiter_has);
    MUST(flock(exclusive, LOCK_UN));
    for (int i = 0; i < 1000 && !shared->flock_waiter_has; i++) guest_sleep_ms(5);
    CHECK(shared->flock_waiter_has == 1, "the waiter did not get the flock: %d", shared->flock_waiter_has);
    kill(flock_waiter, SIGKILL);
    kill(child, SIGKILL);
    kill(waiter, SIGKILL);
    while (wait(NULL) > 0) continue;
    guest_ok();
}
