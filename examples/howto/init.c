#include <stdio.h>
#include <sys/reboot.h>
#include <termios.h>

int main(void) {
    puts("hello from process 1");
    fflush(stdout);
    tcdrain(1); /* the serial port is slow */
    return reboot(RB_POWER_OFF);
}
