/*
 * A connection with a full queue, and threads in every kind of wait: whatever becomes of `cr` while it reads the queue, the waits go
 * on, each with what was left of its time. One thread has a stack of next to nothing, and beside it what must not be touched.
 */
#include "guest.h"

#include <arpa/inet.h>
#include <linux/futex.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <ucontext.h>

/* Later than that is a wait that began anew, in a test that lets it be for three seconds before `cr` comes. */
#define WAIT_MS 8000
#define LATE_MS 2500

static int client, server, full[2], quiet[2];
static _Atomic int begun;
static sigset_t masks[8];

static void connect_pair(int *one, int *two) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof at;
    int listener = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(bind(listener, (struct sockaddr *)&at, sizeof at));
    MUST(listen(listener, 1));
    MUST(getsockname(listener, (struct sockaddr *)&at, &length));
    *one = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(connect(*one, (struct sockaddr *)&at, sizeof at));
    *two = MUST(accept(listener, NULL, NULL));
    MUST(close(listener));
}

static void check_wait(const char *what, uint64_t since, long result, long expected) {
    long ms = (long)((guest_now_ns(CLOCK_MONOTONIC) - since) / 1000000);
    CHECK(result == expected, "%s: %ld (%s)", what, result, strerror(errno));
    CHECK(ms >= WAIT_MS && ms <= WAIT_MS + LATE_MS, "%s took %ld ms for %d", what, ms, WAIT_MS);
}

/* Begins a wait: with a mask of its own, which must be the same afterwards. */
static uint64_t begin(int number) {
    sigemptyset(&masks[number]);
    sigaddset(&masks[number], SIGRTMIN + number);
    MUST0(pthread_sigmask(SIG_SETMASK, &masks[number], NULL));
    begun++;
    return guest_now_ns(CLOCK_MONOTONIC);
}

static void *end(int number) {
    sigset_t now;
    MUST0(pthread_sigmask(SIG_SETMASK, NULL, &now));
    for (int signal = 1; signal <= 64; signal++)
        CHECK(sigismember(&now, signal) == sigismember(&masks[number], signal), "thread %d: signal %d is blocked or not", number, signal);
    return NULL;
}

static void *sleeps(void *unused) {
    struct timespec time = {WAIT_MS / 1000, WAIT_MS % 1000 * 1000000};
    uint64_t since = begin(0);
    check_wait("nanosleep", since, syscall(SYS_nanosleep, &time, NULL), 0);
    (void)unused;
    return end(0);
}

static void *polls(void *unused) {
    struct pollfd fds[2] = {{.fd = quiet[0], .events = POLLIN}, {.fd = full[1], .events = POLLPRI}};
    uint64_t since = begin(1);
    check_wait("poll", since, poll(fds, 2, WAIT_MS), 0);
    (void)unused;
    return end(1);
}

static void *selects(void *unused) {
    struct timeval time = {WAIT_MS / 1000, WAIT_MS % 1000 * 1000};
    fd_set set;
    FD_ZERO(&set);
    FD_SET(quiet[0], &set);
    uint64_t since = begin(2);
    check_wait("select", since, select(quiet[0] + 1, &set, NULL, NULL, &time), 0);
    (void)unused;
    return end(2);
}

static void *waits_for_word(void *unused) {
    static uint32_t word = 7;
    struct timespec time = {WAIT_MS / 1000, WAIT_MS % 1000 * 1000000};
    uint64_t since = begin(3);
    long result = syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 7, &time, NULL, 0);
    CHECK(result == -1 && errno == ETIMEDOUT, "futex: %ld (%s)", result, strerror(errno));
    check_wait("futex", since, 0, 0);
    (void)unused;
    return end(3);
}

/* Reads from a connection that goes on, however often it is under repair. */
static void *receives(void *unused) {
    uint64_t got;
    begin(4);
    for (uint64_t n = 0;; n++) {
        ssize_t length = recv(client, &got, sizeof got, MSG_WAITALL);
        if (length == 0) break;
        CHECK(length == sizeof got && got == n, "receiving %lu: %zd (%s)", n, length, strerror(errno));
    }
    (void)unused;
    return end(4);
}

/* Computes without a call: its registers must come through. */
static _Atomic bool computes_on = true;
static void *computes(void *unused) {
    begin(5);
    uint64_t state = 5, again = 5;
    double sum = 0, same = 0;
    while (computes_on) {
        for (int i = 0; i < 1000; i++) sum += (double)random_below(&state, 1000) / 7, same += (double)random_below(&again, 1000) / 7;
        CHECK(sum == same && state == again, "the computation went wrong");
    }
    (void)unused;
    return end(5);
}

/* As goroutines do: calls are made on a stack of a kilobyte, signals have one of their own. */
static struct {
    uint64_t beside[1024], stack[192], above[64];
} small __attribute__((aligned(64)));
static ucontext_t home, inner;
static _Atomic long small_result = -1;
static void on_small_stack(void) {
    struct timespec time = {WAIT_MS / 1000, WAIT_MS % 1000 * 1000000};
    /* Not through the library, which takes room for the dynamic linker at the first call. */
    long result = SYS_nanosleep;
    __asm__ volatile("syscall" : "+a"(result) : "D"(&time), "S"(NULL) : "rcx", "r11", "memory");
    small_result = result;
}
static void *has_small_stack(void *unused) {
    static char for_signals[32768];
    stack_t alternate = {.ss_sp = for_signals, .ss_size = sizeof for_signals}, now;
    MUST(sigaltstack(&alternate, NULL));
    for (size_t i = 0; i < ARRAY_LEN(small.beside); i++) small.beside[i] = i * 0x9e3779b97f4a7c15u;
    MUST(getcontext(&inner));
    inner.uc_stack.ss_sp = small.stack;
    inner.uc_stack.ss_size = sizeof small.stack;
    inner.uc_link = &home;
    makecontext(&inner, on_small_stack, 0);
    uint64_t since = begin(6);
    inner.uc_sigmask = masks[6];
    MUST(swapcontext(&home, &inner));
    check_wait("nanosleep on a small stack", since, small_result, 0);
    for (size_t i = 0; i < ARRAY_LEN(small.beside); i++) CHECK(small.beside[i] == i * 0x9e3779b97f4a7c15u, "word %zu beside the stack", i);
    MUST(sigaltstack(NULL, &now));
    CHECK(now.ss_sp == alternate.ss_sp && now.ss_size == alternate.ss_size && now.ss_flags == 0, "another stack for signals");
    (void)unused;
    return end(6);
}

/* Sends what fits: byte `n` of all is `n`. */
static uint64_t filled;
static void fill(void) {
    uint8_t bytes[1024];
    ssize_t part;
    do {
        for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (uint8_t)(filled + i);
        part = send(full[0], bytes, sizeof bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (part > 0) filled += (uint64_t)part;
    } while (part > 0);
    CHECK(part == -1 && errno == EAGAIN, "the full one: %zd (%s)", part, strerror(errno));
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    connect_pair(&client, &server);
    connect_pair(&full[0], &full[1]);
    MUST(pipe(quiet));
    int small_buffer = 65536;
    MUST(setsockopt(full[0], SOL_SOCKET, SO_SNDBUF, &small_buffer, sizeof small_buffer));
    fill();
    void *(*const all[])(void *) = {sleeps, polls, selects, waits_for_word, receives, computes, has_small_stack};
    pthread_t threads[ARRAY_LEN(all)];
    for (size_t i = 0; i < ARRAY_LEN(all); i++) MUST0(pthread_create(&threads[i], NULL, all[i], NULL));
    while (begun < (int)ARRAY_LEN(all)) guest_sleep_ms(1);
    guest_ready();
    for (uint64_t sent = 0; !guest_finishing(); sent++) {
        uint8_t first;
        CHECK(send(server, &sent, sizeof sent, MSG_NOSIGNAL) == sizeof sent, "sending %lu: %s", sent, strerror(errno));
        fill();
        CHECK(recv(full[1], &first, 1, MSG_PEEK) == 1 && first == 0, "the full one: %d (%s)", first, strerror(errno));
        guest_step();
        guest_sleep_ms(2);
    }
    MUST(shutdown(server, SHUT_WR));
    computes_on = false;
    for (size_t i = 0; i < ARRAY_LEN(all); i++) MUST0(pthread_join(threads[i], NULL));
    MUST(close(full[0]));
    uint64_t got = 0;
    uint8_t bytes[1024];
    for (ssize_t part; (part = MUST(recv(full[1], bytes, sizeof bytes, 0))) > 0; got += (uint64_t)part)
        for (ssize_t i = 0; i < part; i++) CHECK(bytes[i] == (uint8_t)(got + (uint64_t)i), "byte %lu of the full one", got + (uint64_t)i);
    CHECK(got == filled, "%lu bytes of %lu in the full one", got, filled);
    guest_ok();
}
