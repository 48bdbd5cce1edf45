/* What tests run in the guest, linked statically: says its arguments, ends in a given way, or echoes a vsock stream. */
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

/* Sends back all that comes, until the other end has no more. */
static void echo(int stream) {
    static char buffer[65536];
    ssize_t length;
    while ((length = read(stream, buffer, sizeof buffer)) > 0)
        for (ssize_t sent = 0, part; sent < length; sent += part)
            if ((part = write(stream, buffer + sent, length - sent)) <= 0)
                die("write");
    if (length < 0)
        die("read");
    close(stream);
}

static int vsock(const char *way, unsigned port) {
    int is_server = strcmp(way, "listen") == 0;
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
    if (count == 2 && strcmp(arguments[1], "bytes") == 0) /* each that there is, many times */
        for (int i = 0; i < 256 * 1000; i++)
            putchar(i / 1000 + i);
    else if (count == 3 && (strcmp(arguments[1], "listen") == 0 || strcmp(arguments[1], "connect") == 0))
        echo(vsock(arguments[1], atoi(arguments[2])));
    else {
        printf("process %d\n", (int)getpid());
        for (int i = 0; i < count; i++)
            printf("[%s]\n", arguments[i]);
        fputs("an error\n", stderr);
    }
    return 0;
}
