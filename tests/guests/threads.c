/*
 * Threads and what each of them has of its own.
 *
 *   threads DIR [--threads N]     N: the waiting threads (default 8); beside them four that spin with known registers, one that
 *                                 holds robust mutexes, one that moves between processors, and short-lived ones, one a step
 */
#include "guest.h"
#include <asm/prctl.h>
#include <dirent.h>
#include <linux/ioprio.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/rseq.h>
#include <sys/syscall.h>

static volatile bool stopping;

/* -- threads that spin with known registers ----------------------------------------------------------------------------------- */

/* Named from assembly. */
volatile char spin_stop __attribute__((visibility("hidden")));
volatile uint64_t spin_count[4] __attribute__((visibility("hidden")));
uint64_t general_in[16] __attribute__((visibility("hidden"))), general_out[16] __attribute__((visibility("hidden")));
#define GENERAL_FLAGS 0xcc1UL /* OF, DF, SF, ZF, CF; 1 << 1 is always set. ID cannot be set by a tracer. */
#define GENERAL_FLAGS_CHECKED 0xcd5UL

static void random_bytes(void *to, size_t size, uint64_t seed) {
    for (size_t i = 0; i < size / 8; i++) ((uint64_t *)to)[i] = random_next(&seed);
}

static void compare(const char *what, const void *is, const void *was, size_t size) {
    for (size_t i = 0; i < size; i++)
        CHECK(((const char *)is)[i] == ((const char *)was)[i], "%s registers: byte %zu is %02x, was %02x", what, i,
              ((const unsigned char *)is)[i], ((const unsigned char *)was)[i]);
}

#define SPIN(index)                                                                                                            \
    "1: incq spin_count+8*" #index "(%%rip)\n pause\n cmpb $0, spin_stop(%%rip)\n je 1b\n"
#define XMM_CLOBBERS                                                                                                           \
    "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12",   \
        "xmm13", "xmm14", "xmm15"
#define EACH_16(op) op(0) op(1) op(2) op(3) op(4) op(5) op(6) op(7) op(8) op(9) op(10) op(11) op(12) op(13) op(14) op(15)
#define EACH_HIGH_16(op)                                                                                                       \
    op(16) op(17) op(18) op(19) op(20) op(21) op(22) op(23) op(24) op(25) op(26) op(27) op(28) op(29) op(30) op(31)

static void *spin_sse_and_x87(void *unused) {
    struct {
        char xmm[16 * 16];
        char st[8][16]; /* 10 bytes each are used */
        uint32_t mxcsr;
        uint16_t control;
    } in, out;
    random_bytes(&in, sizeof in & ~7UL, 101);
    memset(&out, 0, sizeof out);
    for (int i = 0; i < 8; i++) {
        in.st[i][7] |= (char)0x80; /* a normal number: explicit leading one */
        memset(in.st[i] + 10, 0, 6);
    }
    in.mxcsr = 0x9fc0;  /* flush to zero, denormals are zero, round up, all masked */
    in.control = 0x0e7f; /* round towards zero, double precision, all masked */
#define LOAD(n) "movdqu 16*" #n "(%0), %%xmm" #n "\n"
#define STORE(n) "movdqu %%xmm" #n ", 16*" #n "(%1)\n"
    __asm__ volatile("ldmxcsr 384(%0)\n fninit\n fldcw 388(%0)\n"
                     "fldt 256(%0)\n fldt 272(%0)\n fldt 288(%0)\n fldt 304(%0)\n fldt 320(%0)\n fldt 336(%0)\n fldt 352(%0)\n"
                     "fldt 368(%0)\n" EACH_16(LOAD) SPIN(0) EACH_16(STORE)
                     "fstpt 368(%1)\n fstpt 352(%1)\n fstpt 336(%1)\n fstpt 320(%1)\n fstpt 304(%1)\n fstpt 288(%1)\n"
                     "fstpt 272(%1)\n fstpt 256(%1)\n stmxcsr 384(%1)\n fnstcw 388(%1)\n fninit\n ldmxcsr %2\n"
                     :
                     : "r"(&in), "r"(&out), "m"((uint32_t){0x1f80})
                     : XMM_CLOBBERS);
#undef LOAD
#undef STORE
    compare("SSE", out.xmm, in.xmm, sizeof in.xmm);
    for (int i = 0; i < 8; i++) compare("x87", out.st[i], in.st[i], 10);
    CHECK((out.mxcsr & 0xffc0) == in.mxcsr, "mxcsr is %x, was %x", out.mxcsr, in.mxcsr);
    CHECK(out.control == in.control, "the x87 control word is %x, was %x", out.control, in.control);
    return unused;
}

static void *spin_avx(void *unused) {
    if (!__builtin_cpu_supports("avx")) {
        guest_skip("avx", "this processor has no AVX");
        return unused;
    }
    char in[16 * 32], out[16 * 32];
    random_bytes(in, sizeof in, 102);
#define LOAD(n) "vmovdqu 32*" #n "(%0), %%ymm" #n "\n"
#define STORE(n) "vmovdqu %%ymm" #n ", 32*" #n "(%1)\n"
    __asm__ volatile(EACH_16(LOAD) SPIN(1) EACH_16(STORE) "vzeroupper\n" : : "r"(in), "r"(out) : XMM_CLOBBERS);
#undef LOAD
#undef STORE
    compare("AVX", out, in, sizeof in);
    return unused;
}

static void *spin_avx512(void *unused) {
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw")) {
        guest_skip("avx512", "this processor has no AVX-512");
        return unused;
    }
    char in[32 * 64 + 8 * 8], out[32 * 64 + 8 * 8];
    random_bytes(in, sizeof in, 103);
    memcpy(out, in, sizeof in);
#define LOAD(n) "vmovdqu64 64*" #n "(%0), %%zmm" #n "\n"
#define STORE(n) "vmovdqu64 %%zmm" #n ", 64*" #n "(%1)\n"
#define MASKS(op) op(1) op(2) op(3) op(4) op(5) op(6) op(7)
#define LOAD_K(n) "kmovq 2048+8*" #n "(%0), %%k" #n "\n"
#define STORE_K(n) "kmovq %%k" #n ", 2048+8*" #n "(%1)\n"
    __asm__ volatile(EACH_16(LOAD) EACH_HIGH_16(LOAD) MASKS(LOAD_K) SPIN(2) EACH_16(STORE) EACH_HIGH_16(STORE) MASKS(STORE_K)
                     "vzeroupper\n"
                     :
                     : "r"(in), "r"(out)
                     : XMM_CLOBBERS);
#undef LOAD
#undef STORE
    compare("AVX-512", out, in, sizeof in);
    return unused;
}

/* All general registers but rcx and rsp, and the flags: the loop tests by jrcxz, which changes none. */
static void *spin_general(void *unused) {
    random_bytes(general_in, sizeof general_in, 104);
#define MOVES(op)                                                                                                              \
    op(0, rax) op(1, rbx) op(2, rdx) op(3, rsi) op(4, rdi) op(5, rbp) op(6, r8) op(7, r9) op(8, r10) op(9, r11) op(10, r12)      \
        op(11, r13) op(12, r14) op(13, r15)
#define LOAD(n, reg) "movq general_in+8*" #n "(%%rip), %%" #reg "\n"
#define STORE(n, reg) "movq %%" #reg ", general_out+8*" #n "(%%rip)\n"
    __asm__ volatile("subq $128, %%rsp\n pushq %%rbp\n pushq %%rbx\n" MOVES(LOAD)
                     "pushq $0xcc1\n popfq\n"
                     "1: movzbq spin_stop(%%rip), %%rcx\n pause\n jrcxz 1b\n"
                     "pushfq\n popq general_out+8*15(%%rip)\n cld\n" MOVES(STORE)
                     "popq %%rbx\n popq %%rbp\n subq $-128, %%rsp\n"
                     :
                     :
                     : "memory", "cc", "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15");
#undef LOAD
#undef STORE
    compare("general", general_out, general_in, 14 * 8);
    CHECK((general_out[15] & GENERAL_FLAGS_CHECKED) == GENERAL_FLAGS, "the flags are %lx, were %lx",
          general_out[15] & GENERAL_FLAGS_CHECKED, GENERAL_FLAGS);
    return unused;
}

/* -- threads that wait, each with attributes of its own ------------------------------------------------------------------------ */

#define TLS_WORDS 512
static _Thread_local uint64_t tls[TLS_WORDS];
static _Thread_local int tls_initialised = 4711;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t next_round = PTHREAD_COND_INITIALIZER, all_done = PTHREAD_COND_INITIALIZER;
static uint64_t round_now;
static long waiters, done_this_round;

struct attributes {
    pid_t tid;
    char name[16], text[2048], altstack[16384];
    uint64_t gs_target;
};

/* Everything about the calling thread that the kernel knows and that must stay, as text. */
static void describe(struct attributes *self, char *out, size_t size) {
    char *end = out + size, name[16];
    cpu_set_t cpus;
    sigset_t mask;
    stack_t stack;
    unsigned long gs = 0;
    void *robust;
    size_t robust_size;
    struct {
        uint32_t size, policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t runtime, deadline, period;
        uint32_t util_min, util_max;
    } sched = {0};
    MUST(prctl(PR_GET_NAME, name));
    MUST(sched_getaffinity(0, sizeof cpus, &cpus));
    MUST(sigprocmask(SIG_BLOCK, NULL, &mask));
    MUST(sigaltstack(NULL, &stack));
    MUST(syscall(SYS_sched_getattr, 0, &sched, sizeof sched, 0));
    MUST(syscall(SYS_arch_prctl, ARCH_GET_GS, &gs));
    MUST(syscall(SYS_get_robust_list, 0, &robust, &robust_size));
    out += snprintf(out, (size_t)(end - out), "tid %ld pid %d pthread %lx name %s cpus", syscall(SYS_gettid), getpid(),
                    (unsigned long)pthread_self(), name);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &cpus)) out += snprintf(out, (size_t)(end - out), " %d", cpu);
    out += snprintf(out, (size_t)(end - out), " mask %016lx altstack %p %d %zu", *(unsigned long *)&mask, stack.ss_sp,
                    stack.ss_flags, stack.ss_size);
    out += snprintf(out, (size_t)(end - out), " policy %u flags %lx nice %d priority %u slice %lu", sched.policy, sched.flags,
                    sched.nice, sched.priority, sched.runtime);
    out += snprintf(out, (size_t)(end - out), " slack %d ioprio %lx gs %lx robust %p %zu", prctl(PR_GET_TIMERSLACK),
                    syscall(SYS_ioprio_get, 1, 0), gs, robust, robust_size);
    CHECK(*(uint64_t *)gs == self->gs_target, "gs points to something else");
    uint64_t through_gs;
    __asm__ volatile("movq %%gs:0, %0" : "=r"(through_gs));
    CHECK(through_gs == self->gs_target, "a load through gs gives %lx, expected %lx", through_gs, self->gs_target);
}

static void set_attributes(struct attributes *self, long index) {
    struct sched_param none = {0}, first = {1};
    cpu_set_t cpus;
    sigset_t mask;
    self->tid = (pid_t)syscall(SYS_gettid);
    snprintf(self->name, sizeof self->name, "cr thread %ld)", index);
    MUST0(pthread_setname_np(pthread_self(), self->name));
    CPU_ZERO(&cpus);
    if (index % 3 != 1) CPU_SET(0, &cpus);
    if (index % 3 != 0) CPU_SET(1, &cpus);
    if (sched_setaffinity(0, sizeof cpus, &cpus) != 0) guest_skip("affinity", "sched_setaffinity: %s", strerror(errno));
    sigemptyset(&mask);
    for (int number = 1; number < 65; number++)
        if (number % (index + 2) == 0 && number != SIGSEGV && number != 32 && number != 33) sigaddset(&mask, number);
    MUST0(pthread_sigmask(SIG_SETMASK, &mask, NULL));
    if (index % 2) {
        stack_t stack = {.ss_sp = self->altstack, .ss_size = sizeof self->altstack, .ss_flags = index % 4 == 3 ? 1 << 31 : 0};
        MUST(sigaltstack(&stack, NULL));
    }
    switch (index % 5) {
    case 0: MUST(setpriority(PRIO_PROCESS, (id_t)self->tid, (int)index + 1)); break;
    case 1: MUST(sched_setscheduler(0, SCHED_BATCH, &none)); break;
    case 2: MUST(sched_setscheduler(0, SCHED_IDLE, &none)); break;
    case 3:
        if (sched_setscheduler(0, SCHED_RR | SCHED_RESET_ON_FORK, &first) != 0) guest_skip("rr", "SCHED_RR: %s", strerror(errno));
        break;
    default:
        if (setpriority(PRIO_PROCESS, (id_t)self->tid, -3) != 0) guest_skip("nice", "nice -3: %s", strerror(errno));
    }
    MUST(prctl(PR_SET_TIMERSLACK, 40000 + index * 1000));
    if (index % 2) MUST(syscall(SYS_ioprio_set, 1, 0, IOPRIO_PRIO_VALUE(IOPRIO_CLASS_BE, (int)(index % 8))));
    self->gs_target = 0x1234567890 + (uint64_t)index;
    MUST(syscall(SYS_arch_prctl, ARCH_SET_GS, &self->gs_target));
}

static void *waiter(void *argument) {
    struct attributes *self = calloc(1, sizeof *self);
    long index = (long)argument;
    char now[2048];
    set_attributes(self, index);
    describe(self, self->text, sizeof self->text);
    for (size_t i = 0; i < TLS_WORDS; i++) tls[i] = (uint64_t)index * 1000000 + i;
    MUST0(pthread_mutex_lock(&lock));
    for (uint64_t round = 0;;) {
        while (round == round_now && !stopping) pthread_cond_wait(&next_round, &lock);
        bool last = stopping;
        uint64_t expected = round;
        round = round_now;
        MUST0(pthread_mutex_unlock(&lock));
        describe(self, now, sizeof now);
        CHECK(strcmp(now, self->text) == 0, "thread %ld was  %s  and is  %s", index, self->text, now);
        CHECK(tls_initialised == 4711 + (int)expected, "thread %ld: a thread-local variable is %d", index, tls_initialised);
        for (size_t i = 0; i < TLS_WORDS; i++)
            CHECK(tls[i] == (uint64_t)index * 1000000 + i + expected, "thread %ld: thread-local word %zu is %lu", index, i, tls[i]);
        for (size_t i = 0; i < TLS_WORDS; i++) tls[i] += round - expected;
        tls_initialised += (int)(round - expected);
        if (last) return argument;
        MUST0(pthread_mutex_lock(&lock));
        if (++done_this_round == waiters) pthread_cond_signal(&all_done);
    }
}

static void run_a_round(void) {
    MUST0(pthread_mutex_lock(&lock));
    round_now++;
    done_this_round = 0;
    MUST0(pthread_cond_broadcast(&next_round));
    while (done_this_round < waiters) MUST0(pthread_cond_wait(&all_done, &lock));
    MUST0(pthread_mutex_unlock(&lock));
}

/* -- robust mutexes ----------------------------------------------------------------------------------------------------------- */

static pthread_mutex_t robust[3];
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER; /* held by main: who dies with the locks waits for it */
static pthread_barrier_t robust_held;

static void *dies_with_locks(void *unused) {
    for (int i = 0; i < 3; i++) MUST0(pthread_mutex_lock(&robust[i]));
    pthread_barrier_wait(&robust_held);
    MUST0(pthread_mutex_lock(&gate));
    MUST0(pthread_mutex_unlock(&gate));
    return unused;
}

static pthread_t set_up_robust(void) {
    pthread_mutexattr_t attributes;
    pthread_t thread;
    MUST0(pthread_mutexattr_init(&attributes));
    MUST0(pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST));
    MUST0(pthread_barrier_init(&robust_held, NULL, 2));
    for (int i = 0; i < 3; i++) MUST0(pthread_mutex_init(&robust[i], &attributes));
    MUST0(pthread_mutex_lock(&gate));
    MUST0(pthread_create(&thread, NULL, dies_with_locks, NULL));
    pthread_barrier_wait(&robust_held);
    return thread;
}

static void check_robust(pthread_t thread) {
    MUST0(pthread_mutex_unlock(&gate));
    MUST0(pthread_join(thread, NULL));
    for (int i = 0; i < 3; i++) {
        int error = pthread_mutex_lock(&robust[i]);
        CHECK(error == EOWNERDEAD, "robust mutex %d after its owner died: %s, expected EOWNERDEAD", i, strerror(error));
        MUST0(pthread_mutex_consistent(&robust[i]));
        MUST0(pthread_mutex_unlock(&robust[i]));
    }
}

/* -- restartable sequences ---------------------------------------------------------------------------------------------------- */

/* Moves between the processors and asks the area that the kernel fills, if registered, where it is. */
static void *mover(void *unused) {
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    if (__rseq_size == 0) {
        guest_skip("rseq", "glibc has not registered restartable sequences");
        return unused;
    }
    volatile uint32_t *cpu_id = (uint32_t *)((char *)__builtin_thread_pointer() + __rseq_offset + 4);
    for (int i = 0; !stopping; i++) {
        cpu_set_t cpus;
        CPU_ZERO(&cpus);
        CPU_SET(i % processors, &cpus);
        MUST(sched_setaffinity(0, sizeof cpus, &cpus));
        CHECK(*cpu_id == (uint32_t)(i % processors), "rseq says processor %d, pinned to %ld: it is no longer registered",
              (int)*cpu_id, i % processors);
        CHECK(sched_getcpu() == i % processors, "sched_getcpu says %d, pinned to %ld", sched_getcpu(), i % processors);
        guest_sleep_ms(3);
    }
    return unused;
}

/* -- short-lived threads ------------------------------------------------------------------------------------------------------ */

static void *short_lived(void *argument) {
    uint64_t value = (uint64_t)argument;
    guest_sleep_ms(2);
    return (void *)random_next(&value);
}

static void run_a_short_life(void) {
    pthread_t thread;
    void *result;
    MUST0(pthread_create(&thread, NULL, short_lived, (void *)guest_steps));
    MUST0(pthread_join(thread, &result));
    uint64_t value = guest_steps;
    CHECK((uint64_t)result == random_next(&value), "a short-lived thread returned %p", result);
}

static long count_threads(void) {
    DIR *tasks = opendir("/proc/self/task");
    long count = 0;
    CHECK(tasks, "opendir /proc/self/task: %s", strerror(errno));
    for (struct dirent *entry; (entry = readdir(tasks));) count += entry->d_name[0] != '.';
    closedir(tasks);
    return count;
}

int main(int argc, char **argv) {
    static void *(*const spin[])(void *) = {spin_sse_and_x87, spin_avx, spin_avx512, spin_general};
    guest_start(argc, argv);
    waiters = guest_option(argc, argv, "threads", 8);
    pthread_t spinner[4], moving, *waiting = calloc((size_t)waiters, sizeof *waiting);
    pid_t leader = (pid_t)syscall(SYS_gettid);
    long others = 1 + (__rseq_size != 0) + 2 + (__builtin_cpu_supports("avx") != 0) + (__builtin_cpu_supports("avx512bw") != 0);
    for (int i = 0; i < 4; i++) MUST0(pthread_create(&spinner[i], NULL, spin[i], NULL));
    MUST0(pthread_create(&moving, NULL, mover, NULL));
    pthread_t with_locks = set_up_robust();
    for (long i = 0; i < waiters; i++) MUST0(pthread_create(&waiting[i], NULL, waiter, (void *)i));
    run_a_round();
    guest_ready();
    while (!guest_finishing()) {
        run_a_round();
        run_a_short_life();
        guest_step();
        guest_sleep_ms(8);
    }
    CHECK(count_threads() == 1 + waiters + others, "there are %ld threads, expected %ld", count_threads(), 1 + waiters + others);
    CHECK(getpid() == leader && syscall(SYS_gettid) == leader, "the leader's ids are %d and %ld, were %d", getpid(),
          syscall(SYS_gettid), leader);
    uint64_t before = spin_count[0];
    guest_sleep_ms(200);
    CHECK(spin_count[0] != before, "a spinning thread does not run any more");
    spin_stop = 1;
    check_robust(with_locks);
    MUST0(pthread_mutex_lock(&lock));
    stopping = true;
    MUST0(pthread_cond_broadcast(&next_round));
    MUST0(pthread_mutex_unlock(&lock));
    for (long i = 0; i < waiters; i++) {
        void *result;
        MUST0(pthread_join(waiting[i], &result));
        CHECK((long)result == i, "thread %ld returned %p", i, result);
    }
    for (int i = 0; i < 4; i++) MUST0(pthread_join(spinner[i], NULL));
    MUST0(pthread_join(moving, NULL));
    guest_ok();
}
