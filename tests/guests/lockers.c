/*
 * Locks of all kinds: what is locked is found out by a child without locks of its own, which asks for each.
 *
 *   lockers DIR
 *
 * Children with a slot: "owner" has POSIX locks of its own and one through a description that it shares with the root, "waiter"
 * waits in F_SETLKW for what the root unlocks at the very end, "flocker" waits in flock(2) for the same.
 */
#include "guest.h"

#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

enum { OWNER, WAITER, FLOCKER, SHARER, CHILDREN };

static struct shared {
    _Atomic int ready, finish;
    _Atomic uint64_t beats[CHILDREN];
    _Atomic int got[CHILDREN]; /* what it waited for */
    char why[300];
    _Atomic int failed;
} *shared;

static pid_t child[CHILDREN], root;
static int posix = -1, posix_dup, ofd, ofd_reader, flocked, flock_shared, leased = -1, deleted, waited, flock_waited, by_sharer;
static char leased_path[PATH_MAX];

static int file(const char *name, int flags) {
    char path[PATH_MAX];
    return MUST(open(guest_path(path, name), flags | O_CREAT | O_CLOEXEC, 0600));
}

static int lock(int fd, int command, short type, off_t start, off_t length) {
    struct flock what = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
    return fcntl(fd, command, &what);
}

__attribute__((noreturn, format(printf, 1, 2))) static void child_fail(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(shared->why, sizeof shared->why, format, args);
    va_end(args);
    shared->failed = 1;
    _exit(1);
}

static pid_t spawn(int slot, void (*life)(void)) {
    pid_t pid = MUST(fork());
    if (pid > 0) return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    (void)slot;
    life();
    _exit(0);
}

static void live(int slot) {
    while (!shared->finish) {
        shared->beats[slot]++;
        usleep(2000);
    }
}

static void owner(void) {
    int own = file("posix", O_RDWR);
    if (lock(own, F_SETLK, F_WRLCK, 1000, 10) || lock(posix_dup, F_SETLK, F_RDLCK, 2000, 1L << 39)) child_fail("owner: %s", strerror(errno));
    shared->ready++;
    live(OWNER);
}

static void waiter(void) {
    shared->ready++;
    if (lock(waited, F_SETLKW, F_WRLCK, 5, 1)) child_fail("F_SETLKW: %s", strerror(errno));
    shared->got[WAITER] = 1;
}

static void flocker(void) {
    int own = file("flock_waited", O_RDWR);
    shared->ready++;
    if (flock(own, LOCK_EX)) child_fail("flock: %s", strerror(errno));
    shared->got[FLOCKER] = 1;
}

/* It shares the table of the root, and so the locks that it takes belong to both. */
static int sharer(void *unused UNUSED) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (lock(by_sharer, F_SETLK, F_WRLCK, 7, 7)) child_fail("sharer: %s", strerror(errno));
    shared->ready++;
    live(SHARER);
    _exit(0);
}

static void set_up(void) {
    posix = file("posix", O_RDWR);
    posix_dup = MUST(dup(posix));
    MUST(lock(posix, F_SETLK, F_WRLCK, 0, 10));
    MUST(lock(posix, F_SETLK, F_RDLCK, 10, 10));
    MUST(lock(posix, F_SETLK, F_WRLCK, 100, 1));
    MUST(lock(posix_dup, F_SETLK, F_WRLCK, 1L << 40, 1L << 40));
    /* Cut out of the middle: the lock becomes two. */
    MUST(lock(posix, F_SETLK, F_WRLCK, 200, 100));
    MUST(lock(posix, F_SETLK, F_UNLCK, 240, 20));
    ofd = file("ofd", O_RDWR);
    ofd_reader = file("ofd", O_RDONLY);
    MUST(lock(ofd, F_OFD_SETLK, F_WRLCK, 50, 50));
    MUST(lock(ofd, F_OFD_SETLK, F_RDLCK, 500, 0));
    MUST(lock(ofd_reader, F_OFD_SETLK, F_RDLCK, 600, 5));
    flocked = file("flock", O_RDWR);
    MUST(flock(flocked, LOCK_EX));
    flock_shared = file("flock_shared", O_RDONLY);
    MUST(flock(flock_shared, LOCK_SH));
    close(file("leased", O_RDWR));
    leased = open(guest_path(leased_path, "leased"), O_RDONLY | O_CLOEXEC);
    if (fcntl(leased, F_SETLEASE, F_RDLCK) != 0) guest_skip("lease", "F_SETLEASE: %s", strerror(errno)), close(leased), leased = -1;
    deleted = file("deleted", O_RDWR);
    char path[PATH_MAX];
    MUST(unlink(guest_path(path, "deleted")));
    MUST(lock(deleted, F_SETLK, F_WRLCK, 9, 9));
    MUST(flock(deleted, LOCK_SH));
    waited = file("waited", O_RDWR);
    MUST(lock(waited, F_SETLK, F_WRLCK, 5, 1));
    flock_waited = file("flock_waited", O_RDWR);
    MUST(flock(flock_waited, LOCK_EX));
    by_sharer = file("by_sharer", O_RDWR);
}

/* What F_GETLK says of a range to a process without locks. */
static void expect(int fd, off_t start, off_t length, short ask, short type, pid_t pid, off_t at, off_t long_) {
    struct flock what = {.l_type = ask, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
    if (fcntl(fd, F_GETLK, &what)) child_fail("F_GETLK: %s", strerror(errno));
    if (what.l_type != type) child_fail("fd %d at %ld: a lock of type %d, expected %d", fd, start, what.l_type, type);
    if (type == F_UNLCK) return;
    if (what.l_start != at || what.l_len != long_) child_fail("fd %d at %ld: locked from %ld, %ld bytes; expected %ld, %ld", fd, start, what.l_start, what.l_len, at, long_);
    if (what.l_pid != pid) child_fail("fd %d at %ld: locked by %d, expected %d", fd, start, what.l_pid, pid);
}

static void expect_flock(const char *name, int operation, bool free) {
    int own = file(name, O_RDWR);
    int got = flock(own, operation | LOCK_NB);
    if ((got == 0) != free) child_fail("flock of %s: %s", name, got ? strerror(errno) : "could be had");
    close(own);
}

static void look(void) {
    expect(posix, 0, 10, F_RDLCK, F_WRLCK, root, 0, 10);
    expect(posix, 10, 10, F_RDLCK, F_UNLCK, 0, 0, 0);
    expect(posix, 10, 10, F_WRLCK, F_RDLCK, root, 10, 10);
    expect(posix, 20, 80, F_WRLCK, F_UNLCK, 0, 0, 0);
    expect(posix, 100, 1, F_WRLCK, F_WRLCK, root, 100, 1);
    expect(posix, 200, 40, F_WRLCK, F_WRLCK, root, 200, 40);
    expect(posix, 240, 20, F_WRLCK, F_UNLCK, 0, 0, 0);
    expect(posix, 260, 40, F_WRLCK, F_WRLCK, root, 260, 40);
    expect(posix, 1000, 10, F_RDLCK, F_WRLCK, child[OWNER], 1000, 10);
    expect(posix, 3000, 1, F_RDLCK, F_UNLCK, 0, 0, 0);
    expect(posix, 3000, 1, F_WRLCK, F_RDLCK, child[OWNER], 2000, 1L << 39);
    expect(posix, 1L << 40, 1, F_RDLCK, F_WRLCK, root, 1L << 40, 1L << 40);
    expect(ofd, 50, 1, F_RDLCK, F_WRLCK, -1, 50, 50);
    expect(ofd, 500, 1, F_WRLCK, F_RDLCK, -1, 500, 0);
    expect(deleted, 0, 0, F_WRLCK, F_WRLCK, root, 9, 9);
    expect(waited, 0, 0, F_WRLCK, F_WRLCK, root, 5, 1);
    expect(by_sharer, 0, 0, F_WRLCK, F_WRLCK, child[SHARER], 7, 7);
    expect_flock("flock", LOCK_SH, false);
    expect_flock("flock_shared", LOCK_SH, true);
    expect_flock("flock_shared", LOCK_EX, false);
    expect_flock("flock_waited", LOCK_SH, false);
    /* Its own description of the file with two OFD locks: it can have what the reader alone has locked for reading. */
    int own = file("ofd", O_RDWR);
    if (lock(own, F_OFD_SETLK, F_RDLCK, 600, 5)) child_fail("OFD read lock beside others: %s", strerror(errno));
    if (lock(own, F_OFD_SETLK, F_WRLCK, 600, 5) == 0) child_fail("an OFD write lock could be had");
    close(own);
    /* Through its description of the deleted file (inherited) a second flock is the same one; a new description conflicts. */
    char self[64];
    snprintf(self, sizeof self, "/proc/self/fd/%d", deleted);
    own = open(self, O_RDWR | O_CLOEXEC);
    if (own < 0 || flock(own, LOCK_EX | LOCK_NB) == 0) child_fail("the deleted file is not locked");
    if (flock(own, LOCK_SH | LOCK_NB)) child_fail("the deleted file has an exclusive lock");
}

static void check(void) {
    pid_t looker = MUST(fork());
    if (looker == 0) {
        look();
        _exit(0);
    }
    int status;
    while (waitpid(looker, &status, 0) < 0) CHECK(errno == EINTR, "waitpid: %s", strerror(errno));
    CHECK(status == 0, "the looker: %s", shared->failed ? shared->why : "died");
    if (leased >= 0) {
        CHECK(fcntl(leased, F_GETLEASE) == F_RDLCK, "the lease is %d", fcntl(leased, F_GETLEASE));
    }
    CHECK(!shared->got[WAITER] && !shared->got[FLOCKER], "a waiter has got a lock that the root holds");
    CHECK(!shared->failed, "%s", shared->why);
}

static volatile sig_atomic_t broken;
static void on_break(int signal UNUSED) { broken++; }

/* Closing the descriptor without lock through which the owner's were not taken leaves them; unlocking wakes those who wait. */
static void finish(void) {
    check();
    /* The OFD reader's own lock: the other description's are of no concern to it. */
    MUST(lock(ofd, F_OFD_SETLK, F_UNLCK, 0, 0));
    struct flock what = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    MUST(fcntl(posix, F_GETLK, &what));
    CHECK(what.l_type == F_WRLCK && what.l_pid == child[OWNER], "the owner's locks: type %d of %d", what.l_type, what.l_pid);
    what = (struct flock){.l_type = F_WRLCK, .l_whence = SEEK_SET};
    MUST(fcntl(ofd, F_OFD_GETLK, &what));
    CHECK(what.l_type == F_RDLCK && what.l_start == 600 && what.l_len == 5, "the reader's OFD lock: type %d at %ld", what.l_type, what.l_start);
    /* Breaking the lease signals its holder. */
    if (leased >= 0) {
        signal(SIGIO, on_break);
        pid_t breaker = MUST(fork());
        if (breaker == 0) {
            int fd = open(leased_path, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
            _exit(fd < 0 && errno == EWOULDBLOCK ? 0 : 1);
        }
        int status;
        while (waitpid(breaker, &status, 0) < 0) CHECK(errno == EINTR, "waitpid: %s", strerror(errno));
        CHECK(status == 0, "nobody was held up by the lease");
        for (int i = 0; i < 1000 && !broken; i++) usleep(1000);
        CHECK(broken, "no signal when the lease was broken");
        MUST(fcntl(leased, F_SETLEASE, F_UNLCK));
    }
    guest_sleep_ms_eintr(50);
    CHECK(!shared->got[WAITER] && !shared->got[FLOCKER], "a waiter has got a lock that the root holds");
    MUST(lock(waited, F_SETLK, F_UNLCK, 0, 0));
    MUST(flock(flock_waited, LOCK_UN));
    for (int i = 0; i < 2000 && !(shared->got[WAITER] && shared->got[FLOCKER]); i++) usleep(1000);
    CHECK(shared->got[WAITER], "who waited in F_SETLKW has not got the lock");
    CHECK(shared->got[FLOCKER], "who waited in flock has not got the lock");
    CHECK(!shared->failed, "%s", shared->why);
    shared->finish = 1;
    for (int i = 0; i < CHILDREN; i++) {
        int status = -1;
        while (waitpid(child[i], &status, __WALL) < 0) CHECK(errno == EINTR, "waitpid: %s", strerror(errno));
        CHECK(status == 0, "child %d ended by %x: %s", i, status, shared->why);
    }
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    root = getpid();
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED, "mmap: %s", strerror(errno));
    set_up();
    static char stack[64 << 10] __attribute__((aligned(16)));
    child[OWNER] = spawn(OWNER, owner);
    child[WAITER] = spawn(WAITER, waiter);
    child[FLOCKER] = spawn(FLOCKER, flocker);
    child[SHARER] = MUST(clone(sharer, stack + sizeof stack, CLONE_FILES | SIGCHLD, NULL));
    while (shared->ready < CHILDREN) {
        CHECK(!shared->failed, "%s", shared->why);
        usleep(1000);
    }
    check();
    guest_ready();
    while (!guest_finishing()) {
        check();
        /* A lock that comes and goes. */
        MUST(lock(posix, F_SETLK, guest_steps % 2 ? F_UNLCK : F_WRLCK, 400, 7));
        uint64_t owners = shared->beats[OWNER], sharers = shared->beats[SHARER];
        while (shared->beats[OWNER] == owners || shared->beats[SHARER] == sharers) {
            CHECK(!shared->failed, "%s", shared->why);
            usleep(1000);
        }
        guest_step();
        guest_sleep_ms_eintr(5);
    }
    finish();
    guest_ok();
}
