/*
 * What the process as a whole has: credentials, limits, directories, names, personality.
 *
 *   process DIR [--user] [--chroot] [--dumpable N] [--no-new-privs]
 *
 * --user gives root up for uid 1001 and keeps three capabilities; --chroot makes DIR the root directory. Everything is written
 * down as lines of text when set up, and compared at the end. Some things change with each step; what they must be then
 * follows from the number of steps.
 */
#include "guest.h"
#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <signal.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/fsuid.h>
#include <sys/resource.h>
#include <sys/syscall.h>

static char before[1 << 20], after[1 << 20], scratch[1 << 16];
static bool user, chrooted;

/* -- set-up ------------------------------------------------------------------------------------------------------------------- */

static void write_file(const char *path, const char *text) {
    int file = open(path, O_WRONLY | O_CLOEXEC);
    if (file < 0 || write(file, text, strlen(text)) < 0) guest_skip(strrchr(path, '/') + 1, "write to %s: %s", path, strerror(errno));
    if (file >= 0) close(file);
}

static void set_up_anyone(void) {
    umask(027);
    write_file("/proc/self/oom_score_adj", "123");
    write_file("/proc/self/coredump_filter", "0x57");
    MUST(personality(ADDR_NO_RANDOMIZE | ADDR_COMPAT_LAYOUT | SHORT_INODE));
    MUST(prctl(PR_SET_NAME, "a (odd) name"));
    MUST(prctl(PR_SET_TIMERSLACK, 123456));
    MUST(prctl(PR_SET_PDEATHSIG, SIGWINCH));
    MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
    MUST(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
    MUST(setpriority(PRIO_PROCESS, 0, 3));
    static const struct {
        int resource;
        rlim_t soft, hard;
    } limits[] = {{RLIMIT_NOFILE, 500, 1000},         {RLIMIT_STACK, 4 << 20, 16 << 20}, {RLIMIT_CORE, 0, 4096},
                  {RLIMIT_AS, 1UL << 40, 1UL << 41},  {RLIMIT_SIGPENDING, 500, 1000},    {RLIMIT_MEMLOCK, 1 << 20, 2 << 20},
                  {RLIMIT_CPU, 3000, RLIM_INFINITY},  {RLIMIT_FSIZE, 1L << 32, 1L << 33}, {RLIMIT_MSGQUEUE, 1000, 2000}};
    for (size_t i = 0; i < ARRAY_LEN(limits); i++) {
        struct rlimit now;
        MUST(getrlimit(limits[i].resource, &now));
        if (limits[i].hard > now.rlim_max) continue; /* cannot be raised */
        MUST(setrlimit(limits[i].resource, &(struct rlimit){limits[i].soft, limits[i].hard}));
    }
    /* Break and arguments are where exec put them; the heap has grown. */
    CHECK(sbrk(100000) != (void *)-1, "sbrk: %s", strerror(errno));
}

static void set_capabilities(uint64_t effective, uint64_t permitted, uint64_t inheritable) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {{(uint32_t)effective, (uint32_t)permitted, (uint32_t)inheritable},
                                             {(uint32_t)(effective >> 32), (uint32_t)(permitted >> 32), (uint32_t)(inheritable >> 32)}};
    MUST(syscall(SYS_capset, &header, data));
}

static void become_user(void) {
    uint64_t kept = 1UL << CAP_SYS_NICE | 1UL << CAP_NET_BIND_SERVICE | 1UL << CAP_SYS_PTRACE;
    MUST(prctl(PR_CAPBSET_DROP, CAP_SYS_BOOT));
    MUST(prctl(PR_CAPBSET_DROP, CAP_MKNOD));
    MUST(prctl(PR_SET_SECUREBITS, SECBIT_KEEP_CAPS | SECBIT_NO_SETUID_FIXUP | SECBIT_NOROOT | SECBIT_NOROOT_LOCKED));
    MUST(setgroups(3, (gid_t[]){2001, 2002, 44}));
    MUST(setresgid(1001, 1002, 1003));
    MUST(setresuid(1001, 1001, 1003));
    setfsgid(1004);
    MUST(prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP | SECBIT_NOROOT | SECBIT_NOROOT_LOCKED));
    set_capabilities(kept, kept, 1UL << CAP_SYS_NICE | 1UL << CAP_NET_BIND_SERVICE);
    MUST(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_BIND_SERVICE, 0, 0));
    set_capabilities(1UL << CAP_SYS_NICE, kept, 1UL << CAP_SYS_NICE | 1UL << CAP_NET_BIND_SERVICE);
}

/* -- what it says of itself ------------------------------------------------------------------------------------------------------ */

static char *out, *out_end;

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...) {
    va_list args;
    va_start(args, format);
    out += vsnprintf(out, (size_t)(out_end - out), format, args);
    va_end(args);
}

static void say_file(const char *path) {
    if (access(path, R_OK) != 0) return;
    size_t length = guest_read_file(path, scratch, sizeof scratch);
    uint64_t hash = 0;
    for (size_t i = 0; i < length; i++) hash = (hash ^ (unsigned char)scratch[i]) * 0x100000001b3u;
    for (size_t i = 0; i < length; i++)
        if (scratch[i] < ' ') scratch[i] = ' ';
    say("%s: %zu bytes, hash %lx: %.200s\n", path, length, hash, scratch);
}

static void say_link(const char *path) {
    char target[PATH_MAX] = "";
    say("%s: %s\n", path, readlink(path, target, sizeof target - 1) < 0 ? strerror(errno) : target);
}

/* The fields of /proc/self/stat that say where exec put things (numbers as in proc(5)). */
static void say_stat(void) {
    static const int fields[] = {5, 6, 18, 19, 26, 27, 28, 45, 46, 47, 48, 49, 50, 51};
    guest_read_file("/proc/self/stat", scratch, sizeof scratch);
    char *field = strrchr(scratch, ')') + 2, *save = NULL;
    size_t wanted = 0;
    int number = 3;
    for (field = strtok_r(field, " ", &save); field && wanted < ARRAY_LEN(fields); field = strtok_r(NULL, " ", &save), number++)
        if (number == fields[wanted]) say("/proc/self/stat field %d: %s\n", number, field), wanted++;
}

static void say_status(void) {
    static const char *const names[] = {"Name", "Umask", "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb",
                                        "NoNewPrivs", "Seccomp", "Pid", "Tgid", "NSpid", "THP_enabled", "Cpus_allowed"};
    char *save = NULL;
    guest_read_file("/proc/self/status", scratch, sizeof scratch);
    for (char *line = strtok_r(scratch, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
        for (size_t i = 0; i < ARRAY_LEN(names); i++)
            if (strncmp(line, names[i], strlen(names[i])) == 0 && line[strlen(names[i])] == ':') say("%s\n", line);
}

static void describe(char *to, size_t size) {
    out = to;
    out_end = to + size;
    uid_t uid[3];
    gid_t gid[3], groups[64];
    MUST(getresuid(&uid[0], &uid[1], &uid[2]));
    MUST(getresgid(&gid[0], &gid[1], &gid[2]));
    say("ids: %u %u %u, %u %u %u, fs %u %u, groups", uid[0], uid[1], uid[2], gid[0], gid[1], gid[2], (uid_t)setfsuid((uid_t)-1),
        (gid_t)setfsgid((gid_t)-1));
    int count = MUST(getgroups(ARRAY_LEN(groups), groups));
    for (int i = 0; i < count; i++) say(" %u", groups[i]);
    say("\npid %d tid %ld pgid %d sid %d\n", getpid(), syscall(SYS_gettid), getpgrp(), getsid(0));
    for (int resource = 0; resource < RLIM_NLIMITS; resource++) {
        struct rlimit limit;
        MUST(getrlimit((__rlimit_resource_t)resource, &limit));
        if (resource == RLIMIT_CORE) limit.rlim_cur = 0; /* changes with each step */
        say("limit %d: %lu %lu\n", resource, limit.rlim_cur, limit.rlim_max);
    }
    int death_signal = 0, subreaper = 0;
    MUST(prctl(PR_GET_PDEATHSIG, &death_signal));
    MUST(prctl(PR_GET_CHILD_SUBREAPER, &subreaper));
    say("death signal %d\nsubreaper %d\n", death_signal, subreaper);
    say("dumpable %d\nkeepcaps %d\nsecurebits %x\n", prctl(PR_GET_DUMPABLE), prctl(PR_GET_KEEPCAPS), prctl(PR_GET_SECUREBITS));
    say("timer slack %d\nno new privs %d\n", prctl(PR_GET_TIMERSLACK), prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
    say("thp disable %d\nmce kill %d\npersonality %x\n", prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0), prctl(PR_MCE_KILL_GET, 0, 0, 0, 0),
        personality(0xffffffff));
    if (chrooted) return; /* there is no /proc */
    say_file("/proc/self/comm");
    say_file("/proc/self/cmdline");
    say_file("/proc/self/environ");
    say_file("/proc/self/auxv");
    say_file("/proc/self/oom_score_adj");
    say_file("/proc/self/coredump_filter");
    say_file("/proc/self/cgroup");
    say_link("/proc/self/exe");
    say_link("/proc/self/root");
    say_link("/proc/self/ns/pid");
    say_link("/proc/self/ns/mnt");
    say_stat();
    say_status();
}

static void compare(void) {
    describe(after, sizeof after);
    char *save_a = NULL, *save_b = NULL, *a = strtok_r(before, "\n", &save_a), *b = strtok_r(after, "\n", &save_b);
    for (; a && b; a = strtok_r(NULL, "\n", &save_a), b = strtok_r(NULL, "\n", &save_b))
        CHECK(strcmp(a, b) == 0, "was  %s  and is  %s", a, b);
    CHECK(!a && !b, "there are %s lines than before: %s", a ? "fewer" : "more", a ? a : b);
}

/* -- what changes with each step -------------------------------------------------------------------------------------------------- */

static void change(uint64_t step) {
    char path[PATH_MAX];
    MUST(chdir(guest_path(path, step % 2 ? "one" : "two")));
    MUST(setrlimit(RLIMIT_CORE, &(struct rlimit){step % 1000, 4096}));
}

static void check_change(uint64_t step) {
    char path[PATH_MAX], now[PATH_MAX];
    CHECK(getcwd(now, sizeof now), "getcwd: %s", strerror(errno));
    CHECK(strcmp(now, guest_path(path, step % 2 ? "one" : "two")) == 0, "the working directory is %s after %lu steps", now, step);
    struct rlimit limit;
    MUST(getrlimit(RLIMIT_CORE, &limit));
    CHECK(limit.rlim_cur == step % 1000, "the soft core limit is %lu after %lu steps", limit.rlim_cur, step);
}

int main(int argc, char **argv) {
    char path[PATH_MAX];
    guest_start(argc, argv);
    user = guest_option(argc, argv, "user", 0);
    chrooted = guest_option(argc, argv, "chroot", 0);
    (void)mkdir(guest_path(path, "one"), 0755);
    (void)mkdir(guest_path(path, "two"), 0755);
    set_up_anyone();
    if (chrooted) {
        MUST(chroot(guest_dir));
        guest_dir[0] = 0;
        MUST(chdir("/one"));
    }
    if (user) become_user();
    if (guest_option(argc, argv, "no-new-privs", 0)) MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    MUST(prctl(PR_SET_DUMPABLE, guest_option(argc, argv, "dumpable", 1)));
    change(0);
    check_change(0);
    describe(before, sizeof before);
    guest_ready();
    while (!guest_finishing()) {
        change(guest_steps + 1);
        guest_step();
        check_change(guest_steps);
        guest_sleep_ms(10);
    }
    check_change(guest_steps);
    compare();
    mode_t mask = umask(0);
    CHECK(mask == 027, "the umask is %o", mask);
    guest_ok();
}
