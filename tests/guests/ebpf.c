// Sets up state that only the kernel knows, says where, then obeys one command a line and answers each with a number.
#define _GNU_SOURCE
#include <fcntl.h>
#include <grp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#endif
#ifndef PR_SET_VMA_ANON_NAME
#define PR_SET_VMA_ANON_NAME 0
#endif

enum { PAGES = 16384, PAGE = 4096 };

static volatile char *memory;
static int child_tid;
static struct timespec remaining;
static volatile int sleeper_tid;

static void handler(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)info, (void)context;
}

static void *sleeper(void *unused) {
    (void)unused;
    struct timespec time = {2000, 0};
    sleeper_tid = syscall(SYS_gettid);
    syscall(SYS_nanosleep, &time, &remaining);
    return NULL;
}

static void *one_of_a_crowd(void *unused) {
    (void)unused;
    pause();
    return NULL;
}

static void *short_lived(void *tid) {
    *(int *)tid = syscall(SYS_gettid);
    return NULL;
}

static void set_up(void) {
    memory = mmap(NULL, (size_t)PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    // A huge page would be written as a whole by its first write.
    madvise((void *)memory, (size_t)PAGES * PAGE, MADV_NOHUGEPAGE);
    prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, memory, (size_t)PAGES * PAGE, "cr-test");

    stack_t stack = {.ss_sp = malloc(65536), .ss_size = 65536};
    sigaltstack(&stack, NULL);
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK};
    sigemptyset(&action.sa_mask);
    sigaddset(&action.sa_mask, SIGHUP);
    sigaction(SIGUSR2, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    sigprocmask(SIG_BLOCK, &blocked, NULL);

    struct itimerval timer = {{500, 0}, {1000, 0}};
    setitimer(ITIMER_REAL, &timer, NULL);
    prctl(PR_SET_TIMERSLACK, 12345UL);
    prctl(PR_SET_PDEATHSIG, SIGWINCH);

    pthread_t thread;
    pthread_create(&thread, NULL, sleeper, NULL);
    while (!sleeper_tid) usleep(1000);

    syscall(SYS_set_tid_address, &child_tid);
    void *robust_list;
    size_t length;
    syscall(SYS_get_robust_list, 0, &robust_list, &length);
    printf("memory=%lu sleeper=%d clear_child_tid=%lu robust_list=%lu altstack=%lu altstack_size=%lu handler=%lu remaining=%lu\n",
           (unsigned long)memory, sleeper_tid, (unsigned long)&child_tid, (unsigned long)robust_list,
           (unsigned long)stack.ss_sp, (unsigned long)stack.ss_size, (unsigned long)handler, (unsigned long)&remaining);
    fflush(stdout);
}

static long fork_and_write(long page) {
    pid_t child = fork();
    if (child == 0) {
        memory[page * PAGE] = 1;
        _exit(0);
    }
    waitpid(child, NULL, 0);
    return child;
}

static long put(const char *path, const char *text) {
    int fd = open(path, O_WRONLY);
    long put = write(fd, text, strlen(text));
    close(fd);
    return put > 0 ? 0 : -1;
}

static long change_auxiliary_vector(void) {
    unsigned long words[128];
    int fd = open("/proc/self/auxv", O_RDONLY);
    long bytes = read(fd, words, sizeof words);
    close(fd);
    if (bytes < 32) return -1;
    words[1] ^= 64;
    return prctl(PR_SET_MM, 12 /* PR_SET_MM_AUXV */, (unsigned long)words, (unsigned long)bytes, 0UL);
}

/* Changes one thing that the process can be asked about. 0 when it did. */
static long change(long which) {
    static char stack[32768];
    static int tid;
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack};
    struct rlimit limit = {333, 444};
    struct itimerval timer = {{0, 0}, {900, 0}}, off = {{0, 0}, {0, 0}};
    switch (which) {
    case 0: return prctl(PR_SET_DUMPABLE, 0) || prctl(PR_SET_DUMPABLE, 1) || prctl(PR_SET_DUMPABLE, 0);
    case 1: return prctl(PR_SET_CHILD_SUBREAPER, 1);
    case 2: return prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
    case 3: return prctl(67 /* PR_SET_MEMORY_MERGE */, 1, 0, 0, 0);
    case 4: return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18L);
    case 5: return sigaction(SIGCHLD, &ignore, NULL);
    case 6: return sigaltstack(&alternate, NULL);
    case 7: return prctl(PR_SET_TIMERSLACK, 777UL);
    case 8: return prctl(PR_SET_PDEATHSIG, SIGUSR2);
    case 9: return prctl(PR_SET_SECUREBITS, 1UL << 4 /* SECBIT_KEEP_CAPS */);
    case 10: return syscall(SYS_set_tid_address, &tid) <= 0;
    case 11: return sbrk(123456) == (void *)-1;
    case 12: return personality(0x0040000 /* ADDR_NO_RANDOMIZE */) < 0;
    case 13: return setrlimit(RLIMIT_NOFILE, &limit);
    case 14: return put("/proc/self/oom_score_adj", "321");
    case 15: return put("/proc/self/coredump_filter", "0x17");
    case 16: return mlockall(MCL_FUTURE);
    case 17: return prctl(65 /* PR_SET_MDWE */, 1UL, 0UL, 0UL, 0UL);
    case 18: return change_auxiliary_vector();
    case 19: return setitimer(ITIMER_VIRTUAL, &timer, NULL);
    case 20: return setitimer(ITIMER_VIRTUAL, &off, NULL);
    case 21: return setitimer(ITIMER_PROF, &timer, NULL);
    case 22: return setitimer(ITIMER_PROF, &off, NULL);
    case 23: return setitimer(ITIMER_REAL, &timer, NULL);
    case 24: return setitimer(ITIMER_REAL, &off, NULL);
    case 25: return timer_create(CLOCK_MONOTONIC, NULL, &(timer_t){0});
    default: return 100;
    }
}

/* Changes one thing that others see of the process in /proc. 0 when it did. */
static long show(long which) {
    static char place[] = "/tmp/cr-ebpf-XXXXXX", moved[64];
    gid_t some[] = {1, 2, 3}, others[] = {1, 2, 4};
    switch (which) {
    case 0: return chdir("/tmp");
    case 1: return umask(0135) == 0135;
    case 2: return setgroups(3, some);
    case 3: return setgroups(3, others);
    case 4: return prctl(PR_SET_NAME, "another name");
    case 5: return setsid() < 0;
    case 6: return prctl(PR_CAPBSET_DROP, 37L /* CAP_AUDIT_READ */);
    case 7: return setfsgid(7) < 0;
    case 8: return setregid(0, 8);
    case 9: return setegid(0);
    case 10: return prctl(PR_SET_NO_NEW_PRIVS, 1L, 0L, 0L, 0L);
    case 11: return !mkdtemp(place) || chdir(place);
    case 12: snprintf(moved, sizeof moved, "%s.moved", place); return rename(place, moved);
    case 13: return rename(moved, place);
    case 14: return rmdir(place);
    case 15: return chroot("/tmp") || chdir("/");
    default: return 100;
    }
}

static long obey(const char *command, long number) {
    volatile char *page = memory + number * PAGE;
    if (!strcmp(command, "write")) {
        page[17] = 1;
    } else if (!strcmp(command, "load")) {
        return page[17];
    } else if (!strcmp(command, "drop")) {
        return madvise((void *)page, PAGE, MADV_DONTNEED);
    } else if (!strcmp(command, "sweep")) {
        for (long i = 0; i < number; i++) memory[i * PAGE] = 1;
    } else if (!strcmp(command, "read")) {
        int zero = open("/dev/zero", O_RDONLY);
        long got = read(zero, (void *)page, PAGE);
        close(zero);
        return got;
    } else if (!strcmp(command, "fork")) {
        return fork_and_write(number);
    } else if (!strcmp(command, "thread")) {
        int tid = 0;
        pthread_t thread;
        pthread_create(&thread, NULL, short_lived, &tid);
        pthread_join(thread, NULL);
        return tid;
    } else if (!strcmp(command, "crowd")) {
        pthread_attr_t attributes;
        pthread_attr_init(&attributes);
        pthread_attr_setstacksize(&attributes, 65536);
        for (long i = 0; i < number; i++) {
            pthread_t thread;
            if (pthread_create(&thread, &attributes, one_of_a_crowd, NULL)) return -1;
        }
    } else if (!strcmp(command, "mappings")) {
        // Neighbours with different rights do not merge.
        for (long i = 0; i < number; i++) {
            if (mmap(NULL, PAGE, i % 2 ? PROT_READ : PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED) return -1;
        }
    } else if (!strcmp(command, "change")) {
        return change(number);
    } else if (!strcmp(command, "show")) {
        return show(number);
    } else if (!strcmp(command, "exec")) {
        execl("/proc/self/exe", "ebpf-guest", NULL);
    }
    return 0;
}

int main(void) {
    set_up();
    char command[32];
    long number;
    for (char line[64]; fgets(line, sizeof line, stdin);) {
        number = 0;
        if (sscanf(line, "%31s %ld", command, &number) < 1) continue;
        printf("%ld\n", obey(command, number));
        fflush(stdout);
    }
    return 0;
}
