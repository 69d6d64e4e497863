/*
 * Knobs that the other guests leave alone: credentials of single threads, what holds for all memory of a process, control
 * groups, and memory that a child does not get.
 *
 *   knobs DIR [--threads] [--mdwe] [--merge] [--thp] [--lock N] [--cgroups] [--fork]
 *
 * --lock 1 is mlockall(MCL_FUTURE), 2 with MCL_ONFAULT. --cgroups puts the process into groups of its own, named in
 * DIR/say.cgroup.N, and one of its threads into another where threads may part. What the guest is, it writes down as lines of
 * text when it is set up, and compares at the end.
 */
#include "guest.h"
#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#ifndef PR_SET_MDWE
#define PR_SET_MDWE 65
#define PR_GET_MDWE 66
#endif
#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE 67
#define PR_GET_MEMORY_MERGE 68
#endif

#define THREADS 4
#define SIZE (16 * PAGE)

static char before[1 << 18], after[1 << 18], text[1 << 18];
static char *out, *out_end;

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...) {
    va_list args;
    va_start(args, format);
    out += vsnprintf(out, (size_t)(out_end - out), format, args);
    va_end(args);
}

/* -- threads with credentials of their own --------------------------------------------------------------------------------------- */

static struct thread {
    pthread_t thread;
    pid_t tid;
    volatile int round, done;
    char words[256];
} threads[THREADS];
static int thread_count;
static volatile int round_wanted;

static void set_capabilities(uint64_t effective, uint64_t permitted, uint64_t inheritable) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {{(uint32_t)effective, (uint32_t)permitted, (uint32_t)inheritable},
                                             {(uint32_t)(effective >> 32), (uint32_t)(permitted >> 32), (uint32_t)(inheritable >> 32)}};
    MUST(syscall(SYS_capset, &header, data));
}

/* System calls change the calling thread alone; it is the C library that changes all of them. */
static void become(int i) {
    gid_t groups[] = {2001, 2002, (gid_t)(3000 + i)};
    switch (i) {
    case 0:
        MUST(prctl(PR_SET_KEEPCAPS, 1));
        MUST(syscall(SYS_setgroups, 3, groups));
        MUST(syscall(SYS_setresgid, 1101, 1102, 1103));
        MUST(syscall(SYS_setresuid, 1201, 1202, 1203));
        set_capabilities(0, 1UL << CAP_SYS_NICE, 1UL << CAP_SYS_NICE);
        MUST(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_SYS_NICE, 0, 0));
        MUST(prctl(PR_SET_KEEPCAPS, 1));
        break;
    case 1:
        MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
        MUST(prctl(PR_CAPBSET_DROP, CAP_SYS_BOOT));
        set_capabilities(1UL << CAP_KILL, 1UL << CAP_KILL | 1UL << CAP_CHOWN, 0);
        break;
    case 2:
        MUST(prctl(PR_SET_SECUREBITS, SECBIT_NOROOT | SECBIT_NO_SETUID_FIXUP_LOCKED | SECBIT_KEEP_CAPS | SECBIT_KEEP_CAPS_LOCKED));
        MUST(syscall(SYS_setfsuid, 1301));
        MUST(syscall(SYS_setfsgid, 1302));
        break;
    default: break;
    }
}

static void *thread_main(void *argument) {
    struct thread *self = argument;
    int i = (int)(self - threads);
    self->tid = (pid_t)syscall(SYS_gettid);
    become(i);
    for (;;) {
        snprintf(self->words, sizeof self->words, "keepcaps %d securebits %x no_new_privs %d slack %d", prctl(PR_GET_KEEPCAPS),
                 prctl(PR_GET_SECUREBITS), prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), prctl(PR_GET_TIMERSLACK));
        self->done = self->round;
        while (self->round == self->done) guest_sleep_ms_eintr(2);
    }
    return NULL;
}

static void ask_threads(void) {
    round_wanted++;
    for (int i = 0; i < thread_count; i++) threads[i].round = round_wanted;
    for (int i = 0; i < thread_count; i++)
        while (threads[i].done != round_wanted) guest_sleep_ms_eintr(1);
}

/* -- memory ------------------------------------------------------------------------------------------------------------------- */

static struct region {
    const char *name;
    unsigned char *at;
} regions[16];
static int region_count;

static unsigned char *add_region(const char *name, int protection) {
    unsigned char *at = MUST(mmap(NULL, SIZE, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    regions[region_count++] = (struct region){name, at};
    return at;
}

/* The flags of the mapping at `at`, but those that tracking adds. */
static void flags_of(const void *at, char *flags, size_t size) {
    guest_read_file("/proc/self/smaps", text, sizeof text);
    bool found = false;
    char *save = NULL;
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        unsigned long start, end;
        if (sscanf(line, "%lx-%lx ", &start, &end) == 2) found = start <= (unsigned long)at && (unsigned long)at < end;
        if (!found || strncmp(line, "VmFlags:", 8) != 0) continue;
        size_t used = 0;
        char *save_word = NULL;
        for (char *word = strtok_r(line + 8, " ", &save_word); word; word = strtok_r(NULL, " ", &save_word))
            if (strcmp(word, "uw") && strcmp(word, "um") && strcmp(word, "ac") && strcmp(word, "sd"))
                used += (size_t)snprintf(flags + used, size - used, "%s ", word);
        return;
    }
    snprintf(flags, size, "none");
}

static void say_new_mapping(void) {
    char flags[128];
    unsigned char *at = MUST(mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    flags_of(at, flags, sizeof flags);
    say("a new mapping: %s\n", flags);
    munmap(at, SIZE);
}

static void say_mdwe(void) {
    say("mdwe %d\n", prctl(PR_GET_MDWE, 0, 0, 0, 0));
    unsigned char *at = MUST(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    say("made executable: %s\n", mprotect(at, PAGE, PROT_READ | PROT_EXEC) == 0 ? "yes" : strerror(errno));
    munmap(at, PAGE);
}

/* -- a child that does not get everything ------------------------------------------------------------------------------------------ */

static unsigned char *not_forked, *wiped, *dropped;
static pid_t child;
static int ask[2], answer[2];

static bool has(pid_t pid, const void *at, const char *flag) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/smaps", pid);
    guest_read_file(path, text, sizeof text);
    bool found = false;
    char *save = NULL;
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        unsigned long start, end;
        if (sscanf(line, "%lx-%lx ", &start, &end) == 2) found = start <= (unsigned long)at && (unsigned long)at < end;
        if (found && strncmp(line, "VmFlags:", 8) == 0) return !flag || strstr(line, flag);
    }
    return false;
}

__attribute__((noreturn)) static void be_child(void) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    close(ask[1]);
    uint64_t count = 0;
    for (;;) {
        unsigned char byte;
        long got = read(ask[0], &byte, 1);
        if (got < 0 && errno == EINTR) continue;
        if (got != 1) _exit(0);
        unsigned char verdict = 0;
        for (size_t i = 0; i < SIZE / 2; i++) verdict |= wiped[SIZE / 2 + i] != 0;
        if (*(uint64_t *)wiped != count) verdict |= 2;
        *(uint64_t *)wiped = ++count;
        if (has(getpid(), not_forked, NULL)) verdict |= 4;
        if (!has(getpid(), wiped, " wf")) verdict |= 8;
        if (!has(getpid(), dropped, " dd") || dropped[PAGE] != 7) verdict |= 16;
        if (write(answer[1], &verdict, 1) != 1) _exit(1);
    }
}

static void make_child(void) {
    not_forked = add_region("not forked", PROT_READ | PROT_WRITE);
    wiped = add_region("wiped", PROT_READ | PROT_WRITE);
    dropped = add_region("not dumped", PROT_READ | PROT_WRITE);
    memset(not_forked, 5, SIZE);
    memset(wiped, 6, SIZE);
    memset(dropped, 7, SIZE);
    MUST(madvise(not_forked, SIZE, MADV_DONTFORK));
    MUST(madvise(wiped, SIZE, MADV_WIPEONFORK));
    MUST(madvise(dropped, SIZE, MADV_DONTDUMP));
    MUST(pipe(ask));
    MUST(pipe(answer));
    child = MUST(fork());
    if (child == 0) be_child();
}

static void check_child(void) {
    unsigned char byte = 1;
    CHECK(write(ask[1], &byte, 1) == 1, "asking the child: %s", strerror(errno));
    long got;
    while ((got = read(answer[0], &byte, 1)) < 0 && errno == EINTR) {}
    CHECK(got == 1 && byte == 0, "the child finds %x (%ld)", byte, got);
    for (size_t i = 0; i < SIZE; i++)
        CHECK(not_forked[i] == 5 && wiped[i] == 6 && dropped[i] == 7, "byte %zu: %d %d %d", i, not_forked[i], wiped[i], dropped[i]);
    int state;
    pid_t other;
    /* A child that is born now gets no more than the first one got. */
    if (guest_steps % 20 == 0) {
        other = MUST(fork());
        if (other == 0) _exit(wiped[3] != 0 ? 1 : has(getpid(), not_forked, NULL) ? 2 : dropped[9] != 7 ? 3 : 0);
        while (waitpid(other, &state, 0) < 0) CHECK(errno == EINTR, "waitpid: %s", strerror(errno));
        CHECK(state == 0, "a new child finds %x", state);
    }
}

/* -- control groups --------------------------------------------------------------------------------------------------------------- */

static void write_number(const char *directory, const char *file, pid_t number) {
    char path[PATH_MAX], words[16];
    snprintf(path, sizeof path, "%s/%s", directory, file);
    int length = snprintf(words, sizeof words, "%d", number);
    int fd = MUST(open(path, O_WRONLY | O_CLOEXEC));
    if (write(fd, words, (size_t)length) != length) guest_fail("%s: %s", path, strerror(errno));
    close(fd);
}

/* Groups below whatever is mounted; the test takes them away. */
static void enter_groups(void) {
    static const struct {
        const char *mount;
        bool per_thread;
    } mounts[] = {{"/sys/fs/cgroup/unified", false}, {"/sys/fs/cgroup", false}, {"/sys/fs/cgroup/pids", true}, {"/sys/fs/cgroup/freezer", true}};
    int made = 0;
    for (size_t i = 0; i < ARRAY_LEN(mounts); i++) {
        char path[256], procs[300], name[32];
        snprintf(path, sizeof path, "%s/cr-guest-%d", mounts[i].mount, getpid());
        snprintf(procs, sizeof procs, "%s/cgroup.procs", mounts[i].mount);
        if (access(procs, F_OK) != 0 || mkdir(path, 0755) != 0) continue;
        snprintf(name, sizeof name, "say.cgroup.%d", made++);
        guest_link(name, path);
        write_number(path, "cgroup.procs", getpid());
        if (!mounts[i].per_thread || !thread_count) continue;
        snprintf(path, sizeof path, "%s/cr-guest-%d/thread", mounts[i].mount, getpid());
        MUST(mkdir(path, 0755));
        write_number(path, "tasks", threads[1].tid);
    }
    if (!made) guest_skip("cgroups", "no cgroup hierarchy that may be written to");
}

/* -- what it says of itself --------------------------------------------------------------------------------------------------------- */

static void say_lines(const char *path, const char *const *names, size_t count) {
    char *save = NULL;
    guest_read_file(path, text, sizeof text);
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        bool wanted = !names;
        for (size_t i = 0; i < count; i++) wanted |= strncmp(line, names[i], strlen(names[i])) == 0;
        if (wanted) say("%s: %s\n", path, line);
    }
}

static void describe(char *to, size_t size) {
    static const char *const names[] = {"Uid:", "Gid:", "Groups:", "Cap", "NoNewPrivs:", "Cpus_allowed:", "THP_enabled:"};
    out = to;
    out_end = to + size;
    char path[64], flags[128];
    say_lines("/proc/self/status", names, ARRAY_LEN(names));
    say_lines("/proc/self/cgroup", NULL, 0);
    ask_threads();
    for (int i = 0; i < thread_count; i++) {
        say("thread %d: %s\n", i, threads[i].words);
        snprintf(path, sizeof path, "/proc/self/task/%d/status", threads[i].tid);
        say_lines(path, names, ARRAY_LEN(names));
        snprintf(path, sizeof path, "/proc/self/task/%d/cgroup", threads[i].tid);
        say_lines(path, NULL, 0);
    }
    say("thp %d merge %d\n", prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0), prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0));
    say_mdwe();
    say_new_mapping();
    for (int i = 0; i < region_count; i++) {
        flags_of(regions[i].at, flags, sizeof flags);
        say("%s: %s\n", regions[i].name, flags);
    }
}

static void compare(void) {
    describe(after, sizeof after);
    char *save_a = NULL, *save_b = NULL, *a = strtok_r(before, "\n", &save_a), *b = strtok_r(after, "\n", &save_b);
    for (; a && b; a = strtok_r(NULL, "\n", &save_a), b = strtok_r(NULL, "\n", &save_b))
        CHECK(strcmp(a, b) == 0, "was  %s  and is  %s", a, b);
    CHECK(!a && !b, "there are %s lines than before: %s", a ? "fewer" : "more", a ? a : b);
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    add_region("plain", PROT_READ | PROT_WRITE)[PAGE] = 1;
    if (guest_option(argc, argv, "thp", 0) && prctl(PR_SET_THP_DISABLE, 1, 2 /* except advised */, 0, 0) != 0)
        MUST(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
    if (guest_option(argc, argv, "threads", 0))
        for (; thread_count < THREADS; thread_count++)
            MUST0(pthread_create(&threads[thread_count].thread, NULL, thread_main, &threads[thread_count]));
    ask_threads();
    if (guest_option(argc, argv, "merge", 0)) {
        if (prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0) != 0) guest_skip("merge", "PR_SET_MEMORY_MERGE: %s", strerror(errno));
        unsigned char *excepted = add_region("not merged", PROT_READ | PROT_WRITE);
        MUST(madvise(excepted, SIZE, MADV_UNMERGEABLE));
        excepted[0] = 1;
    }
    if (guest_option(argc, argv, "mdwe", 0) && prctl(PR_SET_MDWE, 1, 0, 0, 0) != 0) guest_skip("mdwe", "PR_SET_MDWE: %s", strerror(errno));
    long lock = guest_option(argc, argv, "lock", 0);
    if (lock && mlockall(lock == 2 ? MCL_FUTURE | MCL_ONFAULT : MCL_FUTURE) != 0) guest_skip("lock", "mlockall: %s", strerror(errno));
    if (guest_option(argc, argv, "cgroups", 0)) enter_groups();
    if (guest_option(argc, argv, "fork", 0)) make_child();
    describe(before, sizeof before);
    guest_ready();
    while (!guest_finishing()) {
        regions[0].at[guest_steps % SIZE]++;
        guest_step();
        if (child) check_child();
        guest_sleep_ms_eintr(5);
    }
    compare();
    if (child) {
        check_child();
        close(ask[1]);
        int state;
        MUST(waitpid(child, &state, 0));
        CHECK(state == 0, "the child ended with %x", state);
    }
    guest_ok();
}
