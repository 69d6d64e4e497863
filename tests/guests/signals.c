/*
 * Signals: what is installed, blocked, pending and being handled.
 *
 *   signals DIR
 */
#include "guest.h"
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>

/* The kernel's own structure: glibc's wrapper hides the restorer. */
struct kernel_action {
    void *handler;
    unsigned long flags;
    void *restorer;
    unsigned long mask;
};

static struct kernel_action before[65];

static void read_actions(struct kernel_action *actions) {
    for (int number = 1; number <= 64; number++)
        MUST(syscall(SYS_rt_sigaction, number, NULL, &actions[number], 8));
}

static void check_actions(void) {
    struct kernel_action now[65];
    read_actions(now);
    for (int i = 1; i <= 64; i++)
        CHECK(memcmp(&now[i], &before[i], sizeof now[i]) == 0,
              "the action of signal %d is (%p, %lx, %p, %lx), was (%p, %lx, %p, %lx)", i, now[i].handler, now[i].flags,
              now[i].restorer, now[i].mask, before[i].handler, before[i].flags, before[i].restorer, before[i].mask);
}

static volatile sig_atomic_t handled[65];
static volatile int last_value, last_code, last_pid;

static void on_signal(int number) { handled[number]++; }

static void on_info(int number, siginfo_t *info, void *context) {
    (void)context;
    handled[number]++;
    last_value = info->si_value.sival_int;
    last_code = info->si_code;
    last_pid = info->si_pid;
}

static void install(int number, void *handler, int flags, int masked_a, int masked_b) {
    struct sigaction action = {.sa_flags = flags};
    if (flags & SA_SIGINFO) action.sa_sigaction = handler;
    else action.sa_handler = handler;
    sigemptyset(&action.sa_mask);
    if (masked_a) sigaddset(&action.sa_mask, masked_a);
    if (masked_b) sigaddset(&action.sa_mask, masked_b);
    MUST(sigaction(number, &action, NULL));
}

/* -- a thread inside a handler, on its alternate stack ------------------------------------------------------------------------- */

static volatile bool leave_handler, in_handler, stack_was_ok;
static char altstack[65536];
static pthread_t handling_thread;
static pthread_barrier_t handling_set_up;

static void stays_in_handler(int number, siginfo_t *info, void *context) {
    uint64_t frame[PAGE / 8];
    (void)context;
    page_fill(frame, 77);
    __asm__ volatile("" : : "r"(frame) : "memory");
    last_value = info->si_value.sival_int;
    in_handler = true;
    while (!leave_handler) guest_sleep_ms(5);
    char *here = (char *)frame;
    stack_was_ok = here >= altstack && here < altstack + sizeof altstack && page_difference(frame, 77) < 0;
    handled[number]++;
}

/* Raises the signal with a register full of a known value; the handler returns to it much later. */
static void *handles_for_long(void *unused) {
    stack_t stack = {.ss_sp = altstack, .ss_size = sizeof altstack};
    MUST(sigaltstack(&stack, NULL));
    pthread_barrier_wait(&handling_set_up);
    uint64_t value = 0x1122334455667788, xmm_in = 0xaabbccddeeff0011, xmm_out = 0;
    __asm__ volatile("movq %2, %%xmm7\n 1: pause\n cmpb $0, %3\n je 1b\n movq %%xmm7, %1\n"
                     : "+r"(value), "=r"(xmm_out)
                     : "r"(xmm_in), "m"(stack_was_ok)
                     : "xmm7", "memory", "cc");
    CHECK(value == 0x1122334455667788 && xmm_out == xmm_in, "registers after the handler returned: %lx and %lx", value, xmm_out);
    stack_t now;
    MUST(sigaltstack(NULL, &now));
    CHECK(now.ss_sp == altstack && now.ss_flags == 0 && now.ss_size == sizeof altstack, "the alternate stack is %p %d %zu", now.ss_sp,
          now.ss_flags, now.ss_size);
    return unused;
}

/* -- a thread in sigsuspend: its own mask is put away meanwhile ------------------------------------------------------------------ */

static pthread_t suspended_thread;
static volatile bool is_suspending;

static void *suspends(void *unused) {
    sigset_t mask, all_but_hup, after;
    sigfillset(&mask);
    MUST0(pthread_sigmask(SIG_SETMASK, &mask, &after));
    MUST0(pthread_sigmask(SIG_SETMASK, NULL, &mask)); /* the kernel does not block all */
    sigfillset(&all_but_hup);
    sigdelset(&all_but_hup, SIGURG);
    is_suspending = true;
    int result = sigsuspend(&all_but_hup);
    CHECK(result == -1 && errno == EINTR && handled[SIGURG] == 1, "sigsuspend gave %d (%s), handled %d", result, strerror(errno),
          (int)handled[SIGURG]);
    MUST0(pthread_sigmask(SIG_SETMASK, NULL, &after));
    CHECK(memcmp(&after, &mask, 8) == 0, "the mask after sigsuspend is %lx, was %lx", *(unsigned long *)&after, *(unsigned long *)&mask);
    return unused;
}

/* -- pending signals ---------------------------------------------------------------------------------------------------------- */

#define QUEUED 20
static sigset_t blocked;
static int oldest = 1, newest = QUEUED; /* values queued for SIGRTMIN+1, process-directed */
static int thread_oldest = 1001, thread_newest = 1000 + QUEUED; /* for SIGRTMIN+2, directed to the main thread */

static void queue_to_thread(int number, int value) {
    MUST0(pthread_sigqueue(pthread_self(), number, (union sigval){.sival_int = value}));
}

static siginfo_t take(int number) {
    sigset_t set;
    siginfo_t info;
    sigemptyset(&set);
    sigaddset(&set, number);
    /* Not glibc's sigtimedwait: that one shows SI_TKILL as SI_USER. */
    long got = syscall(SYS_rt_sigtimedwait, &set, &info, &(struct timespec){0, 0}, 8);
    CHECK(got == number, "signal %d is not pending: %s", number, strerror(errno));
    return info;
}

static void take_queued(int number, int value, const char *what) {
    siginfo_t info = take(number);
    CHECK(info.si_value.sival_int == value && info.si_code == SI_QUEUE && info.si_pid == getpid() && info.si_uid == getuid(),
          "%s: took value %d, code %d, pid %d, uid %u; expected value %d", what, info.si_value.sival_int, info.si_code, info.si_pid,
          info.si_uid, value);
}

static void set_up_pending(void) {
    sigemptyset(&blocked);
    static const int numbers[] = {SIGUSR1, SIGUSR2, SIGWINCH, SIGTERM};
    for (size_t i = 0; i < ARRAY_LEN(numbers); i++) sigaddset(&blocked, numbers[i]);
    for (int i = 1; i <= 4; i++) sigaddset(&blocked, SIGRTMIN + i);
    MUST0(pthread_sigmask(SIG_BLOCK, &blocked, NULL));
    for (int value = oldest; value <= newest; value++) MUST(sigqueue(getpid(), SIGRTMIN + 1, (union sigval){.sival_int = value}));
    for (int value = thread_oldest; value <= thread_newest; value++) queue_to_thread(SIGRTMIN + 2, value);
    MUST(sigqueue(getpid(), SIGUSR1, (union sigval){.sival_ptr = (void *)0x7fedcba987654321}));
    MUST(kill(getpid(), SIGUSR2));
    MUST0(pthread_kill(pthread_self(), SIGWINCH));
    MUST(kill(getpid(), SIGTERM));
    /* A siginfo of the sender's own making, as another process may send it. */
    siginfo_t made = {.si_signo = SIGRTMIN + 3, .si_code = -77, .si_errno = 5};
    memset((char *)&made + 16, 0x5a, 32); /* the kernel keeps 48 bytes and wants zeroes after them */
    MUST(syscall(SYS_rt_sigqueueinfo, getpid(), SIGRTMIN + 3, &made));
}

static void check_pending(void) {
    sigset_t pending;
    MUST(sigpending(&pending));
    for (int i = 1; i <= 64; i++)
        CHECK(sigismember(&pending, i) == (sigismember(&blocked, i) == 1 && i != SIGRTMIN + 4), "signal %d is %spending", i,
              sigismember(&pending, i) == 1 ? "" : "not ");
    siginfo_t info = take(SIGUSR1);
    CHECK(info.si_value.sival_ptr == (void *)0x7fedcba987654321 && info.si_code == SI_QUEUE, "SIGUSR1 has value %p, code %d",
          info.si_value.sival_ptr, info.si_code);
    info = take(SIGUSR2);
    CHECK(info.si_code == SI_USER && info.si_pid == getpid(), "SIGUSR2 has code %d, pid %d", info.si_code, info.si_pid);
    info = take(SIGWINCH);
    CHECK(info.si_code == SI_TKILL && info.si_pid == getpid(), "SIGWINCH has code %d, pid %d", info.si_code, info.si_pid);
    info = take(SIGTERM);
    info = take(SIGRTMIN + 3);
    CHECK(info.si_code == -77 && info.si_errno == 5, "the made signal has code %d, errno %d", info.si_code, info.si_errno);
    for (int i = 16; i < 48; i++) CHECK(((char *)&info)[i] == 0x5a, "the made signal's byte %d is %02x", i, ((unsigned char *)&info)[i]);
    for (; oldest <= newest; oldest++) take_queued(SIGRTMIN + 1, oldest, "queued to the process");
    for (; thread_oldest <= thread_newest; thread_oldest++) take_queued(SIGRTMIN + 2, thread_oldest, "queued to the thread");
    MUST(sigpending(&pending));
    for (int i = 1; i <= 64; i++) CHECK(sigismember(&pending, i) == 0, "signal %d is pending once more", i);
}

static void step(void) {
    take_queued(SIGRTMIN + 1, oldest++, "queued to the process");
    MUST(sigqueue(getpid(), SIGRTMIN + 1, (union sigval){.sival_int = ++newest}));
    take_queued(SIGRTMIN + 2, thread_oldest++, "queued to the thread");
    queue_to_thread(SIGRTMIN + 2, ++thread_newest);
    /* An action that changes with each step; check_actions wants the last one. */
    install(SIGRTMIN + 6, guest_steps % 2 ? (void *)on_signal : (void *)SIG_IGN, guest_steps % 3 ? SA_RESTART : SA_NODEFER, SIGHUP, 0);
    read_actions(before);
    /* A handler that runs now. */
    int count = handled[SIGRTMIN + 5];
    MUST(sigqueue(getpid(), SIGRTMIN + 5, (union sigval){.sival_int = 99}));
    for (int i = 0; i < 1000 && handled[SIGRTMIN + 5] == count; i++) guest_sleep_ms_eintr(1);
    CHECK(handled[SIGRTMIN + 5] == count + 1 && last_value == 99 && last_code == SI_QUEUE && last_pid == getpid(),
          "the handler ran %d times, value %d, code %d, pid %d", handled[SIGRTMIN + 5] - count, last_value, last_code, last_pid);
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    set_up_pending(); /* before any thread exists: they inherit the mask, so process-directed signals stay pending */
    install(SIGHUP, SIG_IGN, 0, 0, 0);
    install(SIGQUIT, on_signal, SA_RESTART, SIGHUP, SIGINT);
    install(SIGURG, on_signal, 0, 0, 0);
    install(SIGIO, on_info, SA_SIGINFO | SA_ONSTACK | SA_NODEFER, SIGRTMIN + 3, SIGTERM);
    install(SIGCHLD, SIG_IGN, SA_NOCLDSTOP | SA_NOCLDWAIT, 0, 0);
    install(SIGPWR, on_signal, (int)SA_RESETHAND, 0, 0);
    install(SIGRTMIN + 5, on_info, SA_SIGINFO | SA_RESTART, 0, 0);
    install(SIGRTMAX, on_info, SA_SIGINFO, SIGRTMAX, SIGRTMIN);
    install(SIGPROF, stays_in_handler, SA_SIGINFO | SA_ONSTACK, SIGRTMIN + 5, 0);

    MUST0(pthread_create(&suspended_thread, NULL, suspends, NULL));
    MUST0(pthread_barrier_init(&handling_set_up, NULL, 2));
    sigset_t only_main;
    sigemptyset(&only_main);
    sigaddset(&only_main, SIGRTMIN + 5);
    MUST0(pthread_sigmask(SIG_BLOCK, &only_main, NULL));
    MUST0(pthread_create(&handling_thread, NULL, handles_for_long, NULL));
    MUST0(pthread_sigmask(SIG_UNBLOCK, &only_main, NULL));
    pthread_barrier_wait(&handling_set_up);
    MUST0(pthread_sigqueue(handling_thread, SIGPROF, (union sigval){.sival_int = 5}));
    while (!in_handler || !is_suspending) guest_sleep_ms(1);
    read_actions(before);
    guest_ready();
    while (!guest_finishing()) {
        step();
        guest_step();
        guest_sleep_ms_eintr(10);
    }
    check_actions();
    check_pending();
    CHECK(in_handler && !stack_was_ok && handled[SIGPROF] == 0, "the thread is no longer in its handler");
    leave_handler = true;
    MUST0(pthread_join(handling_thread, NULL));
    CHECK(stack_was_ok, "the handler's frame on the alternate stack differs");
    MUST0(pthread_kill(suspended_thread, SIGURG));
    MUST0(pthread_join(suspended_thread, NULL));
    /* Ignored stays ignored, one-shot stays one-shot. */
    MUST(kill(getpid(), SIGHUP));
    MUST(kill(getpid(), SIGCHLD));
    MUST(kill(getpid(), SIGPWR));
    guest_sleep_ms_eintr(20);
    struct kernel_action now;
    MUST(syscall(SYS_rt_sigaction, SIGPWR, NULL, &now, 8));
    CHECK(handled[SIGPWR] == 1 && now.handler == SIG_DFL, "the one-shot handler ran %d times", (int)handled[SIGPWR]);
    guest_ok();
}
