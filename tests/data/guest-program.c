/* A program that tests run in the guest. Its first argument says what it does: exit in some way, print many bytes, or transfer
   100 MB by vsock (streams between programs of the host and of the guest). Otherwise it prints its arguments. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

static void die(const char *what) {
    perror(what);
    exit(1);
}

enum { LENGTH = 100 * 1000 * 1000, PIECE = 50 * 1000 };

/* Fills a piece with pseudo-random bytes, the same as `Noise` in tests/guest/vsock.rs. */
static void noise(unsigned long *state, unsigned char *piece) {
    for (int i = 0; i < PIECE; i += 8) {
        *state = *state * 6364136223846793005UL + 1442695040888963407UL;
        unsigned long word = *state ^ *state >> 29;
        memcpy(piece + i, &word, 8);
    }
}

/* Sends 100 MB of noise, or compares the received bytes with it. */
static void transfer(int stream, int is_sender) {
    static unsigned char piece[PIECE], received[PIECE];
    unsigned long state = 1;
    for (int i = 0; i < LENGTH / PIECE; i++) {
        noise(&state, piece);
        for (ssize_t done = 0, part; done < PIECE; done += part)
            if ((part = is_sender ? write(stream, piece + done, PIECE - done)
                                  : read(stream, received + done, PIECE - done)) <= 0)
                die("the stream ends too early");
        if (!is_sender && memcmp(piece, received, PIECE) != 0)
            die("a byte has changed");
    }
    puts("transferred 100 MB");
    /* The receiver closes the stream when it has received all bytes. */
    while (is_sender && read(stream, received, PIECE) > 0)
        ;
}

static int vsock(const char *mode, unsigned port) {
    int is_server = strcmp(mode, "listen") == 0;
    struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_port = port,
                                  .svm_cid = is_server ? VMADDR_CID_ANY : VMADDR_CID_HOST};
    int stream = socket(AF_VSOCK, SOCK_STREAM, 0);
    if (stream < 0)
        die("socket");
    if (!is_server) {
        if (connect(stream, (struct sockaddr *)&address, sizeof address) < 0)
            die("connect");
        return stream;
    }
    if (bind(stream, (struct sockaddr *)&address, sizeof address) < 0 || listen(stream, 1) < 0)
        die("listen");
    puts("listening");
    fflush(stdout);
    return accept(stream, NULL, NULL);
}

int main(int count, char **arguments) {
    if (count == 3 && strcmp(arguments[1], "exit") == 0) {
        fputs("half a line", stderr);
        return atoi(arguments[2]);
    }
    if (count == 2 && strcmp(arguments[1], "abort") == 0)
        abort();
    if (count == 2 && strcmp(arguments[1], "fault") == 0)
        *(volatile int *)NULL = 0;
    if (count == 2 && strcmp(arguments[1], "bytes") == 0) /* each byte value, many times */
        for (int i = 0; i < 256 * 1000; i++)
            putchar(i / 1000 + i);
    else if (count == 3 && (strcmp(arguments[1], "listen") == 0 || strcmp(arguments[1], "connect") == 0))
        transfer(vsock(arguments[1], atoi(arguments[2])), strcmp(arguments[1], "connect") == 0);
    else {
        printf("process %d\n", (int)getpid());
        for (int i = 0; i < count; i++)
            printf("[%s]\n", arguments[i]);
        fputs("an error\n", stderr);
    }
    return 0;
}
