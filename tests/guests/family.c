/*
 * A tree of processes, one part at a time: `family DIR --part NAME`.
 *
 * The root speaks for all. Every other living process has a slot in shared memory, where it counts beats and, at the end, gives its
 * verdict. A step of the guest is one in which every process has made a beat: so after a restore all of them must run.
 */
#include "guest.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define SLOTS 64

struct who {
    pid_t pid, ppid, pgid, sid;
};

static struct shared {
    _Atomic uint64_t beats[SLOTS];
    _Atomic int verdicts[SLOTS]; /* 0 none yet, 1 fine, 2 not */
    char why[SLOTS][200];
    struct who who[SLOTS];
    _Atomic int slots;
    _Atomic int ready;
    _Atomic int finish;
} *shared;

static int slot = -1; /* the root's is -1 */

__attribute__((noreturn, format(printf, 1, 2))) static void child_fail(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(shared->why[slot], sizeof shared->why[slot], format, args);
    va_end(args);
    shared->verdicts[slot] = 2;
    _exit(1);
}

#define CHILD(condition, ...)                                                                                                  \
    do {                                                                                                                       \
        if (!(condition)) child_fail(__VA_ARGS__);                                                                             \
    } while (0)

static struct who who_am_i(void) { return (struct who){getpid(), getppid(), getpgid(0), getsid(0)}; }

/* Takes a slot before the fork, so that the root waits for it. */
static int new_slot(void) { return shared->slots++; }

static void be_ready(int own) {
    slot = own;
    shared->who[slot] = who_am_i();
    shared->ready++;
}

static void check_who(void) {
    struct who now = who_am_i(), was = shared->who[slot];
    CHILD(now.pid == was.pid, "pid %d, was %d", now.pid, was.pid);
    CHILD(now.ppid == was.ppid, "%d: parent %d, was %d", now.pid, now.ppid, was.ppid);
    CHILD(now.pgid == was.pgid, "%d: group %d, was %d", now.pid, now.pgid, was.pgid);
    CHILD(now.sid == was.sid, "%d: session %d, was %d", now.pid, now.sid, was.sid);
}

static void beat(void) {
    shared->beats[slot]++;
    usleep(2000);
}

/* A child's life without anything else to do. */
__attribute__((noreturn)) static void live_and_die(void) {
    while (!shared->finish) beat();
    check_who();
    shared->verdicts[slot] = 1;
    /* Its children look who their parent is. */
    while (wait(NULL) > 0) continue;
    _exit(20 + slot);
}

static pid_t spawn(void (*life)(void)) {
    int own = new_slot();
    pid_t child = MUST(fork());
    if (child == 0) {
        be_ready(own);
        life();
        live_and_die();
    }
    return child;
}

static void wait_ready(void) {
    while (shared->ready < shared->slots) {
        for (int i = 0; i < shared->slots; i++) CHECK(shared->verdicts[i] != 2, "slot %d: %s", i, shared->why[i]);
        usleep(1000);
    }
}

/* ------------------------------------------------------------------------------------------------------------ deep, wide */

static int depth = 6;
static unsigned char *pattern;

static void own_memory(void) {
    pattern = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < 16; i++) page_fill(pattern + i * PAGE, (uint64_t)getpid() * 100 + (uint64_t)i);
}

static void check_memory(void) {
    for (int i = 0; i < 16; i++)
        CHILD(page_difference(pattern + i * PAGE, (uint64_t)getpid() * 100 + (uint64_t)i) < 0, "page %d of %d", i, getpid());
}

static void deep_life(void) {
    int below[2];
    CHILD(pipe(below) == 0 && write(below[1], &slot, sizeof slot) == sizeof slot, "pipe");
    own_memory();
    pid_t child = 0;
    if (--depth > 0) child = spawn(deep_life);
    while (!shared->finish) beat();
    check_memory();
    int got = -1, status = 0;
    CHILD(read(below[0], &got, sizeof got) == sizeof got && got == slot, "the pipe of slot %d holds %d", slot, got);
    if (child) {
        CHILD(waitpid(child, &status, 0) == child, "waitpid: %s", strerror(errno));
        CHILD(WIFEXITED(status) && WEXITSTATUS(status) == 20 + slot + 1, "child of slot %d: status %x", slot, status);
    }
}

static void deep(void) { spawn(deep_life); }

static void wide_life(void) {
    own_memory();
    while (!shared->finish) beat();
    check_memory();
}

static void wide(void) {
    for (int i = 0; i < 20; i++) spawn(wide_life);
}

/* ------------------------------------------------------------------------------------------------------------- sessions */

static void in_own_session(void) { CHILD(setsid() == getpid(), "setsid"); shared->who[slot] = who_am_i(); }
static void in_own_group(void) { CHILD(setpgid(0, 0) == 0, "setpgid"); shared->who[slot] = who_am_i(); }

static void leader_with_old_child(void) {
    spawn(live_and_die); /* it stays in the old session */
    in_own_session();
    spawn(live_and_die);
    spawn(in_own_group);
}

/* The leader of the group ends, its two members stay. */
static void group_without_leader(void) {
    pid_t leader = MUST(fork());
    if (leader == 0) {
        setpgid(0, 0);
        for (;;) pause();
    }
    setpgid(leader, leader);
    for (int i = 0; i < 2; i++) {
        int own = new_slot();
        pid_t member = MUST(fork());
        if (member == 0) {
            if (setpgid(0, leader) != 0) _exit(9);
            be_ready(own);
            live_and_die();
        }
    }
    wait_ready();
    kill(leader, SIGKILL);
    waitpid(leader, NULL, 0);
}

/* A process in a session whose leader has ended: an orphan that comes to us. */
static void session_without_leader(void) {
    int own = new_slot();
    pid_t leader = MUST(fork());
    if (leader == 0) {
        setsid();
        if (fork() == 0) {
            while (getppid() == getsid(0)) usleep(1000);
            be_ready(own);
            live_and_die();
        }
        _exit(0);
    }
    waitpid(leader, NULL, 0);
}

static void sessions(void) {
    MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
    spawn(leader_with_old_child);
    spawn(in_own_session);
    spawn(in_own_group);
    group_without_leader();
    session_without_leader();
}

/* -------------------------------------------------------------------------------------------------------------- orphans */

static void (*orphan_then)(void);

/* A process in the caller's session, whose parent ends at once. */
static pid_t leave_orphan(void (*life)(void)) {
    int own = new_slot();
    orphan_then = life;
    pid_t between = fork();
    if (between == 0) {
        pid_t maker = getpid();
        if (fork() == 0) {
            while (getppid() == maker) usleep(500);
            be_ready(own);
            orphan_then();
            live_and_die();
        }
        _exit(0);
    }
    waitpid(between, NULL, 0);
    return between;
}

static void nothing(void) {}

/* A session's leader; two orphans of it come to the root, one of which leads a session with an orphan of its own. */
static void makes_leader(void) { in_own_session(); leave_orphan(in_own_group); }

static void leaves_orphans(void) {
    in_own_session();
    leave_orphan(nothing);
    leave_orphan(makes_leader);
}

/* Leads a session, and gets an orphan of the one that its grandchild leads. */
static void gets_orphans(void) {
    CHILD(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0, "prctl");
    in_own_session();
    spawn(leaves_orphans);
}

/* In a session of its own whose leader ends: one member stays with who made it, another comes to the root. */
static void survives_leader(void) {
    pid_t leader = getsid(0);
    while (kill(leader, 0) == 0) usleep(500);
    shared->who[slot] = who_am_i();
}

static void old_session(void) {
    int first = new_slot(), second = new_slot();
    pid_t leader = MUST(fork());
    if (leader == 0) {
        setsid();
        for (int i = 0; i < 2; i++) {
            if (fork() != 0) continue;
            slot = i == 0 ? first : second;
            if (i == 1) setpgid(0, 0);
            survives_leader();
            be_ready(slot);
            live_and_die();
        }
        _exit(0);
    }
    waitpid(leader, NULL, 0);
}

/* The leader of a session has ended, unnoticed, and its orphan goes on. */
static void unnoticed_leader(void) {
    int own = new_slot();
    pid_t leader = MUST(fork());
    if (leader == 0) {
        setsid();
        if (fork() == 0) {
            while (getppid() == getsid(0)) usleep(500);
            be_ready(own);
            live_and_die();
        }
        _exit(99);
    }
    siginfo_t info;
    MUST(waitid(P_PID, (id_t)leader, &info, WEXITED | WNOWAIT));
}

/* Two processes that have each gone over to the group that the other one led. */
static void swapped_groups(void) {
    pid_t both[2];
    int go[2][2], slots[2];
    for (int i = 0; i < 2; i++) {
        slots[i] = new_slot();
        MUST(pipe(go[i]));
        both[i] = MUST(fork());
        if (both[i] == 0) {
            pid_t other = 0;
            setpgid(0, 0);
            if (read(go[i][0], &other, sizeof other) != sizeof other || setpgid(0, other) != 0) _exit(9);
            for (int n = 0; n <= i; n++) close(go[n][0]), close(go[n][1]);
            be_ready(slots[i]);
            live_and_die();
        }
        while (getpgid(both[i]) != both[i]) usleep(500);
    }
    pid_t holder = MUST(fork()); /* the group of the first one lives on while that leaves it */
    if (holder == 0) {
        setpgid(0, both[0]);
        for (;;) pause();
    }
    while (getpgid(holder) != both[0]) usleep(500);
    for (int i = 0; i < 2; i++) {
        MUST(write(go[i][1], &both[1 - i], sizeof both[1 - i]));
        while (getpgid(both[i]) != both[1 - i]) usleep(500);
        close(go[i][0]), close(go[i][1]);
    }
    kill(holder, SIGKILL);
    waitpid(holder, NULL, 0);
}

static void orphans(void) {
    MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
    spawn(leaves_orphans);
    spawn(gets_orphans);
    old_session();
    unnoticed_leader();
    swapped_groups();
}

static void check_orphans(void) {
    int ended = 0, status = 0;
    while (wait(&status) > 0) ended += WIFEXITED(status) && WEXITSTATUS(status) == 99;
    CHECK(ended == 1, "%d unnoticed leaders of sessions had ended", ended);
}

/* -------------------------------------------------------------------------------------------------------------- daemons */

/* Once DIR/daemon is there, a process leaves the tree: an orphan, in a session whose leader has ended, that nobody here gets. */
static void leaves_daemon(void) {
    while (!guest_has("daemon")) beat();
    int own = new_slot();
    pid_t leader = fork();
    if (leader == 0) {
        setsid();
        if (fork() == 0) {
            while (getppid() == getsid(0)) usleep(500);
            be_ready(own);
            guest_link("say.daemon", "lives");
            while (!shared->finish) beat();
            shared->who[slot].ppid = getppid(); /* whoever that is */
            check_who();
            shared->verdicts[slot] = 1;
            _exit(0);
        }
        _exit(0);
    }
    waitpid(leader, NULL, 0);
}

static void daemons(void) { spawn(leaves_daemon); }

/* -------------------------------------------------------------------------------------------------------------- zombies */

static volatile sig_atomic_t told;
static void tell(int signal) { (void)signal, told++; }
static pid_t dead[3];

static void zombies(void) {
    struct sigaction action = {.sa_handler = tell};
    MUST(sigaction(SIGCHLD, &action, NULL));
    for (int i = 0; i < 3; i++) {
        dead[i] = MUST(fork());
        if (dead[i] == 0) {
            if (i == 0) _exit(42);
            if (i == 1) prctl(PR_SET_NAME, "done for");
            raise(i == 1 ? SIGKILL : SIGUSR1);
            _exit(1);
        }
        siginfo_t info;
        while (waitid(P_PID, (id_t)dead[i], &info, WEXITED | WNOWAIT) != 0 && errno == EINTR) continue;
    }
    spawn(live_and_die);
    told = 0;
}

/* What came before anybody ended by himself. */
static int told_before;

static void check_zombies(void) {
    const int codes[] = {CLD_EXITED, CLD_KILLED, CLD_KILLED}, statuses[] = {42, SIGKILL, SIGUSR1};
    CHECK(told_before == 0, "SIGCHLD came %d times more", told_before);
    for (int i = 0; i < 3; i++) {
        siginfo_t info = {0};
        char path[64], name[64];
        snprintf(path, sizeof path, "/proc/%d/comm", dead[i]);
        guest_read_file(path, name, sizeof name);
        CHECK(i != 1 || strcmp(name, "done for\n") == 0, "zombie %d is called %s", i, name);
        MUST(waitid(P_PID, (id_t)dead[i], &info, WEXITED));
        CHECK(info.si_code == codes[i] && info.si_status == statuses[i], "zombie %d: code %d, status %d", i, info.si_code,
              info.si_status);
    }
}

/* -------------------------------------------------------------------------------------------------------------- stopped */

static pid_t halted[2];

static void stopped(void) {
    struct sigaction action = {.sa_handler = tell};
    MUST(sigaction(SIGCHLD, &action, NULL));
    for (int i = 0; i < 2; i++) {
        halted[i] = MUST(fork());
        if (halted[i] == 0) {
            setpgid(0, 0);
            raise(i == 0 ? SIGSTOP : SIGTSTP);
            _exit(30 + i);
        }
        siginfo_t info;
        /* Of the first stop we are told, of the second we look without taking it. */
        int options = WSTOPPED | (i == 1 ? WNOWAIT : 0);
        while (waitid(P_PID, (id_t)halted[i], &info, options) != 0) CHECK(errno == EINTR, "waitid: %s", strerror(errno));
    }
    spawn(live_and_die);
    told = 0;
}

static void check_stopped(void) {
    CHECK(told_before == 0, "SIGCHLD came %d times more", told_before);
    for (int i = 0; i < 2; i++) {
        siginfo_t info = {0};
        char path[64], stat[512];
        snprintf(path, sizeof path, "/proc/%d/stat", halted[i]);
        guest_read_file(path, stat, sizeof stat);
        CHECK(strstr(stat, ") T "), "%d is not stopped: %s", halted[i], stat);
        MUST(waitid(P_PID, (id_t)halted[i], &info, WSTOPPED | WNOHANG | WNOWAIT));
        if (i == 0) CHECK(info.si_pid == 0, "the stop that we were told of is told again");
        if (i == 1) CHECK(info.si_pid == halted[1] && info.si_status == SIGTSTP, "stop of %d: %d", info.si_pid, info.si_status);
    }
    for (int i = 0; i < 2; i++) {
        int status = 0;
        kill(halted[i], SIGCONT);
        while (waitpid(halted[i], &status, 0) != halted[i]) CHECK(errno == EINTR, "waitpid: %s", strerror(errno));
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 30 + i, "the stopped one ended with %x", status);
    }
}

/* -------------------------------------------------------------------------------------------------------------- waiting */

static void waiting_life(void) {
    pid_t child = fork();
    if (child == 0) {
        while (!shared->finish) usleep(2000);
        _exit(77);
    }
    /* Its beats come from a child of its own, since it does nothing but wait. */
    pid_t beating = fork();
    if (beating == 0) {
        while (!shared->finish) beat();
        for (;;) pause();
    }
    int status = 0;
    pid_t got = wait(&status);
    CHILD(got == child && WIFEXITED(status) && WEXITSTATUS(status) == 77, "wait gave %d, status %x, errno %d", got, status, errno);
    kill(beating, SIGTERM);
    CHILD(waitpid(beating, &status, 0) == beating && WIFSIGNALED(status), "the other child: %x", status);
}

static void waiting(void) { spawn(waiting_life); }

/* ---------------------------------------------------------------------------------------------------------------- files */

static int common, ring[5][2];

static void files_life(void) {
    /* All write through one description: its offset is theirs together. */
    while (!shared->finish) {
        CHILD(write(common, "12345678", 8) == 8, "write: %s", strerror(errno));
        beat();
    }
    int number = -1, at = slot % 5;
    CHILD(read(ring[at][0], &number, sizeof number) == sizeof number && number == 1000 + at, "ring %d: %d", at, number);
}

static void files(void) {
    char path[PATH_MAX];
    common = MUST(open(guest_path(path, "common"), O_RDWR | O_CREAT | O_TRUNC, 0600));
    for (int i = 0; i < 5; i++) {
        int number = 1000 + i;
        MUST(pipe(ring[i]));
        MUST(write(ring[i][1], &number, sizeof number));
    }
    for (int i = 0; i < 5; i++) spawn(files_life);
}

static void check_files(void) {
    struct stat status;
    MUST(fstat(common, &status));
    off_t at = MUST(lseek(common, 0, SEEK_CUR));
    CHECK(at == status.st_size && at % 8 == 0, "offset %ld of %ld bytes: they did not share it", (long)at, (long)status.st_size);
}

/* ------------------------------------------------------------------------------------------------------------------ cow */

#define COW_PAGES (64UL << 20 >> 12)
static unsigned char *cow_memory;

static void cow_life(void) {
    unsigned char *own = cow_memory + ((size_t)slot << 20);
    for (size_t i = 0; i < 256; i++) page_fill(own + i * PAGE, 5000 + (uint64_t)slot * 256 + i);
    while (!shared->finish) {
        own[0] ^= 1, own[0] ^= 1;
        beat();
    }
    for (size_t i = 0; i < COW_PAGES; i++) {
        bool mine = i / 256 == (size_t)slot;
        uint64_t seed = mine ? 5000 + i : 1 + i;
        CHILD(page_difference(cow_memory + i * PAGE, seed) < 0, "slot %d: page %zu is another", slot, i);
    }
}

static void cow(void) {
    cow_memory = mmap(NULL, COW_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (size_t i = 0; i < COW_PAGES; i++) page_fill(cow_memory + i * PAGE, 1 + i);
    for (int i = 0; i < 8; i++) spawn(cow_life);
}

static void check_cow(void) {
    for (size_t i = 0; i < COW_PAGES; i++)
        CHECK(page_difference(cow_memory + i * PAGE, 1 + i) < 0, "page %zu of the root is another", i);
}

/* -------------------------------------------------------------------------------------------------------------- sharing */

static int sharer_slot, sharer_pid;
static _Alignas(16) unsigned char sharer_stack[64 << 10];
static volatile uint64_t sharer_word;

static int sharer(void *unused) {
    (void)unused;
    /* The slot is a variable of the process whose memory this is. */
    struct shared *s = shared;
    s->ready++;
    while (!s->finish) {
        sharer_word++;
        s->beats[sharer_slot]++;
        usleep(2000);
    }
    int fd = open("/dev/null", O_RDONLY);
    s->verdicts[sharer_slot] = fd >= 0 && chdir("/") == 0 ? 1 : 2;
    return 20 + sharer_slot;
}

static void sharing_life(void) {
    int flags = CLONE_VM | CLONE_FILES | CLONE_FS | CLONE_SIGHAND | SIGCHLD;
    sharer_slot = new_slot();
    sharer_pid = clone(sharer, sharer_stack + sizeof sharer_stack, flags, NULL);
    CHILD(sharer_pid > 0, "clone: %s", strerror(errno));
    int highest = dup(0);
    close(highest);
    while (!shared->finish) beat();
    int status = 0;
    CHILD(waitpid(sharer_pid, &status, 0) == sharer_pid && WEXITSTATUS(status) == 20 + sharer_slot, "the sharer: %x", status);
    CHILD(sharer_word > 0, "the memory is not one");
    CHILD(fcntl(highest, F_GETFD) >= 0, "the table of descriptors is not one");
    char place[PATH_MAX];
    CHILD(getcwd(place, sizeof place) && strcmp(place, "/") == 0, "the directory is not one: %s", place);
}

static void sharing(void) { spawn(sharing_life); }

/* ---------------------------------------------------------------------------------------------------------------- forker */

/* Processes that come and go all the time. */
static void forker_life(void) {
    for (uint64_t n = 0; !shared->finish; n++) {
        pid_t child = fork();
        CHILD(child >= 0, "fork: %s", strerror(errno));
        if (child == 0) {
            pid_t grandchild = fork();
            if (grandchild == 0) _exit((int)(n % 50));
            int status = -1;
            _exit(waitpid(grandchild, &status, 0) == grandchild && WIFEXITED(status) ? WEXITSTATUS(status) : 255);
        }
        int status = -1;
        CHILD(waitpid(child, &status, 0) == child, "waitpid: %s", strerror(errno));
        CHILD(WIFEXITED(status) && WEXITSTATUS(status) == (int)(n % 50), "round %lu: status %x", n, status);
        CHILD(waitpid(-1, &status, WNOHANG) == -1 && errno == ECHILD, "there is a child too many");
        shared->beats[slot]++;
    }
}

static void forker(void) {
    for (int i = 0; i < 3; i++) spawn(forker_life);
}

/* ------------------------------------------------------------------------------------------------------------- headless */

/* A process whose main thread has ended, and whose other two go on. */
static int headless_pipe[2], headless_value = 4711, orphan_told, main_tid;

static void orphan_tell(int signal) { (void)signal, orphan_told++; }

/* Its parent is a thread that lives on: the end of the main one is none of its concern, the first time or any other. */
static void headless_child_life(void) {
    struct sigaction action = {.sa_handler = orphan_tell};
    CHILD(sigaction(SIGUSR2, &action, NULL) == 0 && prctl(PR_SET_PDEATHSIG, SIGUSR2) == 0, "prctl");
    while (!shared->finish) beat();
    CHILD(orphan_told == 0, "the end of its parent's thread was told %d times", orphan_told);
}

static void *headless_second(void *unused) {
    while (!shared->finish) usleep(500);
    syscall(SYS_exit, 0);
    return unused;
}

static void *headless_first(void *own) {
    slot = *(int *)own;
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", main_tid);
    do { /* until it has really ended */
        usleep(500);
        guest_read_file(path, text, sizeof text);
    } while (!strstr(text, ") Z "));
    pid_t child = spawn(headless_child_life);
    char groups[4096], groups_now[4096];
    guest_read_file("/proc/thread-self/cgroup", groups, sizeof groups);
    be_ready(*(int *)own);
    while (!shared->finish) beat();
    check_who();
    check_memory();
    guest_read_file(path, text, sizeof text);
    CHILD(strstr(text, "(gone before) Z "), "the main thread: %s", text);
    CHILD(strstr(text, " 19712\n"), "the main thread ended with another code than 77: %s", text);
    CHILD(gettid() != main_tid && getpid() == main_tid, "it is the main thread");
    guest_read_file("/proc/thread-self/cgroup", groups_now, sizeof groups_now);
    CHILD(strcmp(groups, groups_now) == 0, "its control groups were\n%s and are\n%s", groups, groups_now);
    int got = 0, status = 0;
    CHILD(read(headless_pipe[0], &got, sizeof got) == sizeof got && got == 4711, "the pipe holds %d", got);
    CHILD(headless_value == 4711 && getcwd(text, sizeof text) && strcmp(text, guest_dir) == 0, "directory %s", text);
    CHILD(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 20 + slot + 1, "child: %x", status);
    shared->verdicts[slot] = 1;
    syscall(SYS_exit, 66); /* the last one to end */
    return NULL;
}

static void check_headless_root(void) {
    char text[512];
    guest_read_file("/proc/self/stat", text, sizeof text);
    CHECK(strstr(text, "(gone before) Z ") && gettid() != getpid(), "the main thread: %s", text);
}

static pid_t headless_process;

__attribute__((noreturn)) static void lose_head(int own, bool is_root) {
    static int number;
    pthread_t threads[2];
    number = own;
    main_tid = gettid();
    if (!is_root) {
        own_memory();
        if (pipe(headless_pipe) != 0 || write(headless_pipe[1], &headless_value, 4) != 4 || chdir(guest_dir) != 0) _exit(9);
        pthread_create(&threads[0], NULL, headless_first, &number);
        pthread_create(&threads[1], NULL, headless_second, NULL);
    }
    prctl(PR_SET_NAME, "gone before");
    syscall(SYS_exit, 77);
    abort();
}

static void headless(void) {
    int own = new_slot();
    headless_process = MUST(fork());
    if (headless_process == 0) lose_head(own, false);
}

static void check_headless(void) {
    int status = 0;
    MUST(waitpid(headless_process, &status, 0));
    /* Before Linux 5.19 it was the main thread that counted, now it is the last one. */
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    CHECK(code == 66 || code == 77, "the process without its head ended with %x", status);
}

/* ------------------------------------------------------------------------------------------------------------------ main */

static const struct part {
    const char *name;
    void (*set_up)(void);
    void (*check)(void);
} parts[] = {
    {"deep", deep, NULL},           {"wide", wide, NULL},       {"sessions", sessions, NULL}, {"zombies", zombies, check_zombies},
    {"stopped", stopped, check_stopped}, {"waiting", waiting, NULL}, {"files", files, check_files}, {"cow", cow, check_cow},
    {"sharing", sharing, NULL},     {"forker", forker, NULL},   {"headless", headless, check_headless},
    {"headless-root", deep, check_headless_root}, {"orphans", orphans, check_orphans},
    {"daemons", daemons, NULL},
};

/* Waits until every process has made a beat more. */
static void all_beat(void) {
    uint64_t before[SLOTS], start = guest_now_ns(CLOCK_MONOTONIC);
    for (int i = 0; i < shared->slots; i++) before[i] = shared->beats[i];
    for (int i = 0; i < shared->slots; i++)
        while (shared->beats[i] == before[i]) {
            CHECK(shared->verdicts[i] == 0, "slot %d (pid %d): %s", i, shared->who[i].pid, shared->why[i]);
            CHECK(guest_now_ns(CLOCK_MONOTONIC) - start < 30000000000u, "slot %d (pid %d) does not run", i, shared->who[i].pid);
            guest_sleep_ms_eintr(1);
        }
}

static void *speak(void *chosen) {
    const struct part *part = chosen;
    part->set_up();
    wait_ready();
    struct who root = who_am_i();
    guest_ready();
    while (!guest_finishing()) {
        all_beat();
        guest_step();
    }
    told_before = told;
    shared->finish = 1;
    for (int i = 0; i < shared->slots; i++) {
        uint64_t start = guest_now_ns(CLOCK_MONOTONIC);
        while (shared->verdicts[i] == 0) {
            CHECK(guest_now_ns(CLOCK_MONOTONIC) - start < 30000000000u, "slot %d has no verdict", i);
            guest_sleep_ms_eintr(1);
        }
        CHECK(shared->verdicts[i] == 1, "slot %d (pid %d): %s", i, shared->who[i].pid, shared->why[i]);
    }
    struct who now = who_am_i();
    CHECK(now.pid == root.pid && (root.sid != root.pid || now.sid == root.sid), "the root is another");
    if (part->check) part->check();
    while (wait(NULL) > 0 || errno == EINTR) continue;
    guest_ok();
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    const struct part *part = NULL;
    for (size_t i = 0; i < ARRAY_LEN(parts); i++)
        for (int a = 2; a < argc; a++)
            if (strcmp(argv[a], parts[i].name) == 0) part = &parts[i];
    CHECK(part, "which part?");
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED, "mmap: %s", strerror(errno));
    if (strcmp(part->name, "headless-root") != 0) speak((void *)part);
    /* All that the root does is done by another thread than its main one, which ends now. */
    pthread_t speaker;
    MUST0(pthread_create(&speaker, NULL, speak, (void *)part));
    lose_head(-1, true);
}
