/*
 * A tree of which a checkpoint may take a part.
 *
 *   only DIR [--pipe | --socket] [--shared]
 *
 * A root has two children. One (say.child) counts the steps and gives the verdict: it and a child of its own (say.grandchild) pass
 * a number on to each other through pipes of their own. With --pipe or --socket it tells the root, too, and with --shared it has memory with
 * it. The other (say.other) waits.
 */
#include "guest.h"
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>

static void say_pid(const char *name, pid_t pid) {
    char text[32];
    snprintf(text, sizeof text, "%d", pid);
    guest_link(name, text);
}

/* Answers each number with the next one, until there is nobody left to ask. */
__attribute__((noreturn)) static void answer(int from, int to) {
    uint64_t number;
    while (read(from, &number, sizeof number) == sizeof number) {
        number++;
        if (write(to, &number, sizeof number) != sizeof number) _exit(3);
    }
    _exit(0);
}

/* What the child does: `to_root` and `shared` may not be there. */
__attribute__((noreturn)) static void lead(int to_root, volatile uint64_t *shared) {
    int there[2], back[2];
    MUST(pipe2(there, 0));
    MUST(pipe2(back, 0));
    pid_t grandchild = MUST(fork());
    if (grandchild == 0) {
        close(there[1]), close(back[0]);
        if (to_root >= 0) close(to_root);
        answer(there[0], back[1]);
    }
    close(there[0]), close(back[1]);
    say_pid("say.grandchild", grandchild);
    say_pid("say.child", getpid());
    uint64_t number = 0;
    while (!guest_finishing()) {
        uint64_t answered = 0;
        CHECK(write(there[1], &number, sizeof number) == sizeof number, "to the grandchild: %s", strerror(errno));
        CHECK(read(back[0], &answered, sizeof answered) == sizeof answered, "from the grandchild: %s", strerror(errno));
        CHECK(answered == number + 1, "the grandchild answered %lu to %lu", answered, number);
        number = answered;
        if (to_root >= 0) CHECK(write(to_root, "x", 1) == 1, "to the root: %s", strerror(errno));
        if (shared) *shared = number;
        guest_step();
        CHECK(guest_steps == number, "step %lu, number %lu", guest_steps, number);
        guest_sleep_ms(5);
    }
    close(there[1]);
    int status;
    CHECK(MUST(waitpid(grandchild, &status, 0)) == grandchild && status == 0, "the grandchild ended with %#x", status);
    guest_ok();
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    bool with_pipe = guest_option(argc, argv, "pipe", 0), with_memory = guest_option(argc, argv, "shared", 0);
    int ends[2] = {-1, -1};
    volatile uint64_t *shared = NULL;
    if (with_pipe) MUST(pipe2(ends, 0));
    if (guest_option(argc, argv, "socket", 0)) {
        MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, ends));
        with_pipe = true;
    }
    if (with_memory) {
        shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        CHECK(shared != MAP_FAILED, "mmap: %s", strerror(errno));
    }
    pid_t child = MUST(fork());
    if (child == 0) {
        if (with_pipe) close(ends[0]);
        lead(ends[1], shared);
    }
    if (with_pipe) close(ends[1]);
    if (!with_memory) shared = NULL;
    pid_t other = MUST(fork());
    if (other == 0) {
        if (with_pipe) close(ends[0]);
        if (shared) MUST(munmap((void *)shared, PAGE));
        for (;;) pause();
    }
    say_pid("say.other", other);
    while (!guest_has("step") || guest_steps == 0) {
        struct stat step;
        char path[PATH_MAX];
        MUST(stat(guest_path(path, "step"), &step));
        guest_steps = (uint64_t)step.st_size;
        guest_sleep_ms(2);
    }
    guest_ready();
    char byte;
    if (with_pipe)
        while (read(ends[0], &byte, 1) == 1) continue;
    int status;
    CHECK(MUST(waitpid(child, &status, 0)) == child, "waitpid: %s", strerror(errno));
    MUST(kill(other, SIGKILL));
    MUST(waitpid(other, NULL, 0));
    return status == 0 ? 0 : 1;
}
