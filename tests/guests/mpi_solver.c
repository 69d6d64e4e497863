/*
 * A parallel job: heat that spreads along a rod, of which each rank of MPI has a part.
 *
 *   mpirun -n RANKS mpi_solver DIR [--cells N] [--steps N]
 *
 * In every step neighbours exchange their outermost cells, every cell is computed anew, and all agree on the largest change. Rank 0
 * counts the steps; at the end it prints "answer X", where X tells apart any two states of all the rod. It depends on the
 * number of cells and steps only.
 */
#include "guest.h"
#include <mpi.h>

static double *cells, *next; /* with one cell of each neighbour's at either end */

static uint64_t hash_of(const double *values, long count, uint64_t hash) {
    for (long i = 0; i < count; i++) {
        uint64_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        hash = (hash ^ bits) * 0x100000001b3u;
    }
    return hash;
}

int main(int argc, char **argv) {
    int rank, ranks;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    if (rank == 0) guest_start(argc, argv);
    long all = guest_option(argc, argv, "cells", 1 << 20), steps = guest_option(argc, argv, "steps", 1000);
    long first = all * rank / ranks, count = all * (rank + 1) / ranks - first;
    cells = calloc((size_t)count + 2, sizeof *cells);
    next = calloc((size_t)count + 2, sizeof *next);
    CHECK(cells && next, "no memory for %ld cells", count);
    for (long i = 0; i < count; i++) {
        uint64_t state = (uint64_t)(first + i);
        cells[i + 1] = (double)(random_next(&state) >> 11) / 9007199254740992.0;
    }
    int left = rank > 0 ? rank - 1 : MPI_PROC_NULL, right = rank + 1 < ranks ? rank + 1 : MPI_PROC_NULL;
    double largest = 0;
    for (long step = 0; step < steps; step++) {
        MPI_Sendrecv(&cells[count], 1, MPI_DOUBLE, right, 1, &cells[0], 1, MPI_DOUBLE, left, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        MPI_Sendrecv(&cells[1], 1, MPI_DOUBLE, left, 2, &cells[count + 1], 1, MPI_DOUBLE, right, 2, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        double change = 0;
        for (long i = 1; i <= count; i++) {
            next[i] = cells[i] + 0.25 * (cells[i - 1] - 2 * cells[i] + cells[i + 1]);
            double by = next[i] > cells[i] ? next[i] - cells[i] : cells[i] - next[i];
            if (by > change) change = by;
        }
        MPI_Allreduce(&change, &largest, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
        double *swap = cells;
        cells = next;
        next = swap;
        if (rank == 0) guest_step();
    }
    /* The ranks hash one after another, each its own cells: as if they were one's. */
    uint64_t hash = 0xcbf29ce484222325u;
    if (rank > 0) MPI_Recv(&hash, 1, MPI_UINT64_T, rank - 1, 3, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    hash = hash_of(cells + 1, count, hash);
    MPI_Send(&hash, 1, MPI_UINT64_T, (rank + 1) % ranks, 3, MPI_COMM_WORLD);
    if (rank == 0) {
        MPI_Recv(&hash, 1, MPI_UINT64_T, ranks - 1, 3, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        printf("answer %016lx, change %.17g\n", hash, largest);
        fflush(stdout);
    }
    MPI_Finalize();
    return 0;
}
