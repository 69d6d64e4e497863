/*
 * A job on a terminal: standard input, output and error are the terminal that it was started from, later the one that it was
 * restored from. Prints a line a step, and at the end `answer N` with the number of steps.
 *
 *   terminal DIR [--raw]
 *
 * With `--raw` it leads a group of its own in the foreground, as an editor does that a shell has started: it reads keys without
 * waiting for lines, and Ctrl-C ends nothing but is counted: the link say.interrupts tells how often.
 */
#include "guest.h"
#include <poll.h>
#include <signal.h>
#include <termios.h>

static volatile sig_atomic_t interrupts;

static void on_interrupt(int signal) {
    (void)signal;
    interrupts++;
}

static void check_raw(const char *when) {
    struct termios settings;
    CHECK(tcgetpgrp(0) == getpgrp(), "%s: group %d is in the foreground, not %d", when, tcgetpgrp(0), getpgrp());
    CHECK(tcgetattr(0, &settings) == 0, "%s: no terminal", when);
    CHECK(!(settings.c_lflag & (ICANON | ECHO)) && settings.c_lflag & ISIG && settings.c_cc[VMIN] == 1, "%s: other settings", when);
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    for (int fd = 0; fd < 3; fd++) CHECK(isatty(fd), "descriptor %d is no terminal to begin with", fd);
    bool raw = guest_option(argc, argv, "raw", 0);
    if (raw) {
        struct termios settings;
        struct sigaction action = {.sa_handler = on_interrupt, .sa_flags = SA_RESTART};
        MUST(sigaction(SIGINT, &action, NULL));
        MUST(tcgetattr(0, &settings));
        settings.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
        settings.c_cc[VMIN] = 1;
        MUST(tcsetattr(0, TCSANOW, &settings));
        CHECK(getpgrp() == getpid() && getsid(0) != getpid(), "no shell gave it a group");
        check_raw("to begin with");
    }
    guest_ready();
    while (!guest_finishing()) {
        printf("step %lu\n", guest_steps);
        CHECK(fflush(stdout) == 0, "write to the terminal: %s", strerror(errno));
        guest_step();
        guest_sleep_ms_eintr(10);
        if (!raw) continue;
        check_raw("on the way");
        struct pollfd key = {0, POLLIN, 0};
        char byte;
        if (poll(&key, 1, 0) == 1 && read(0, &byte, 1) == 1) guest_link("say.key", (char[]){byte, 0});
        if (interrupts) guest_link("say.interrupts", "some");
    }
    struct termios settings;
    for (int fd = 0; fd < 3; fd++) CHECK(tcgetattr(fd, &settings) == 0, "descriptor %d is no terminal: %s", fd, strerror(errno));
    printf("answer %lu\n", guest_steps);
    CHECK(fflush(stdout) == 0, "write to the terminal: %s", strerror(errno));
    guest_ok();
}
