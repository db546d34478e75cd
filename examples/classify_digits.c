/* Reads digits of 28 x 28 bytes from standard input and prints the class of each, one a line.
 *
 *     lepton-jit demo -o out
 *     cc -O2 -Iout examples/classify_digits.c out/digits.so -Wl,-rpath,$PWD/out -o classify_digits
 *     tail -c +17 t10k-images-idx3-ubyte | ./classify_digits      # the header of an IDX file has 16 bytes
 *
 * With an argument, a file of that name also receives the probabilities, ten floats a digit.
 */
#include <stdio.h>
#include <stdlib.h>

#include "digits.h"

enum { BATCH = 100, PIXELS = 28 * 28, CLASSES = 10 };

static int most_likely(const float *probabilities) {
    int best = 0;
    for (int c = 1; c < CLASSES; c++)
        if (probabilities[c] > probabilities[best]) best = c;
    return best;
}

int main(int argc, char **argv) {
    static unsigned char bytes[BATCH * PIXELS];
    static float images[BATCH * PIXELS], probabilities[BATCH * CLASSES];
    FILE *file = argc > 1 ? fopen(argv[1], "wb") : NULL;
    if (argc > 1 && !file) {
        perror(argv[1]);
        return EXIT_FAILURE;
    }
    size_t n;
    while ((n = fread(bytes, PIXELS, BATCH, stdin)) > 0) {
        for (size_t i = 0; i < n * PIXELS; i++) images[i] = bytes[i] / 255.0f;
        int code = digits((int64_t)n, images, probabilities);
        if (code) {
            fprintf(stderr, "digits: %s\n", digits_message(code));
            return EXIT_FAILURE;
        }
        for (size_t i = 0; i < n; i++) printf("%d\n", most_likely(probabilities + i * CLASSES));
        if (file) fwrite(probabilities, sizeof(float) * CLASSES, n, file);
    }
    return file && fclose(file) ? EXIT_FAILURE : EXIT_SUCCESS;
}
