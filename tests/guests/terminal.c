/*
 * A job on a terminal: standard input, output and error are the terminal that it was started from, later the one that it was
 * restored from. Prints a line a step, and at the end `answer N` with the number of steps.
 *
 *   terminal DIR
 */
#include "guest.h"
#include <termios.h>

int main(int argc, char **argv) {
    guest_start(argc, argv);
    for (int fd = 0; fd < 3; fd++) CHECK(isatty(fd), "descriptor %d is no terminal to begin with", fd);
    guest_ready();
    while (!guest_finishing()) {
        printf("step %lu\n", guest_steps);
        CHECK(fflush(stdout) == 0, "write to the terminal: %s", strerror(errno));
        guest_step();
        guest_sleep_ms(10);
    }
    struct termios settings;
    for (int fd = 0; fd < 3; fd++) CHECK(tcgetattr(fd, &settings) == 0, "descriptor %d is no terminal: %s", fd, strerror(errno));
    printf("answer %lu\n", guest_steps);
    CHECK(fflush(stdout) == 0, "write to the terminal: %s", strerror(errno));
    guest_ok();
}
