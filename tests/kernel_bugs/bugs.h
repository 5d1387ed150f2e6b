// Every deliberate mistake: its name, what is wrong, and which instrument notices. The functions
// lie in the files of this folder; each runs the mistaken kernel or its correct twin.
//
//   rules      the plain build's device reports an error or a leak, or the program crashes
//   orders     the plain build's results differ between orders of threads, blocks and streams
//   reference  the plain build's result is not the reference's, in the usual order
//   sanitizer  ASan or UBSan ends the program
//   detector   the detector reports a race, an uninitialised read or an address
//
// kernel_bugs_test.cpp compares every cell with what happens.
#pragma once

namespace graft::bugs {

enum Instrument : unsigned { rules = 1, orders = 2, reference = 4, sanitizer = 8, detector = 16 };

struct Outcome;

}  // namespace graft::bugs

// clang-format off
#define GRAFT_KERNEL_BUGS(X)                                                                       \
  /* indices.cu */                                                                                 \
  X(guard_off_by_one, "i <= n instead of i < n", rules | sanitizer | detector)                     \
  X(read_past_end, "the last element reads its right neighbour",                                   \
    reference | sanitizer | detector)                                                              \
  X(write_past_end, "n + 1 offsets in an array of n", rules | sanitizer | detector)                \
  X(unsigned_wrap, "0u - 1 taken for a place left of the first", rules | detector)                 \
  X(tail_forgotten, "packs of four, and nobody does the rest", reference | detector)               \
  X(wrong_row_stride, "rows are as long as the part that is read, not as the array's", reference)  \
  X(bias_by_row, "the bias of a column is looked up by its row", reference)                        \
  X(transposed_stride, "the transposed array is walked with the stride of the other",              \
    orders | reference | detector)                                                                 \
  X(index_overflow, "row * columns in 32 bits, signed", reference | sanitizer)                     \
  X(counter_truncated, "a 64-bit counter kept in 32 bits, unsigned", reference)                    \
  X(stride_of_one_block, "a grid-stride loop that steps by one block: blocks repeat each other",   \
    reference | detector)                                                                          \
  X(stride_too_long, "a grid-stride loop that steps too far", reference | detector)                \
  X(shared_index_past_end, "the last lane reads one past a shared array",                          \
    reference | sanitizer | detector)                                                              \
  X(bin_past_end, "the largest value counts in one bin too many", rules | sanitizer | detector)    \
  X(unaligned_pack, "16-byte accesses to an array that begins at 4", rules)                        \
  X(unaligned_shared_vector, "16-byte accesses to shared rows of 33 floats", sanitizer)            \
  X(division_by_zero, "columns / 16 of a row with ten columns", rules | sanitizer)                 \
  X(shift_by_32, "1u << 32 for a mask of all lanes", reference | sanitizer)                        \
  X(label_before_start, "label -1 is used as an index", reference | sanitizer | detector)          \
  X(dynamic_shared_too_small, "the launch gives half of what the kernel uses",                     \
    rules | sanitizer | detector)                                                                  \
  /* barriers.cu */                                                                                \
  X(no_barrier_before_reuse, "partial sums are overwritten while others read them",                \
    orders | detector)                                                                             \
  X(no_barrier_after_store, "shared memory read before it is written by the others",               \
    orders | reference | detector)                                                                 \
  X(barrier_in_branch, "only some threads reach __syncthreads()", rules)                           \
  X(barriers_of_two_branches, "two __syncthreads() for two halves of the block", rules)            \
  X(return_before_barrier, "threads without work return before __syncthreads()", rules)            \
  X(barrier_in_uneven_loop, "__syncthreads() in a loop of different lengths", rules)               \
  X(transposed_without_barrier, "a tile is read by columns before all rows are there",             \
    orders | reference | detector)                                                                 \
  X(no_barrier_at_loop_end, "the next tile is loaded while others use this one",                   \
    orders | reference | detector)                                                                 \
  X(buffer_in_use_overwritten, "double buffering that loads into the buffer in use",               \
    orders | reference | detector)                                                                 \
  X(stale_shared_memory, "only the first block clears its sum", reference | detector)              \
  X(uninitialised_partials, "32 partial sums are added, four were written", reference | detector)  \
  X(last_warp_forgotten, "the last warp's partial sum is left out", reference)                     \
  X(counted_without_atomics, "++ on shared bins by all threads", detector)                         \
  X(shared_scale_not_waited_for, "one thread computes a factor, the others do not wait",           \
    orders | detector)                                                                             \
  X(tree_without_warp_order, "no barrier in the last steps of a tree",                             \
    orders | reference | detector)                                                                 \
  X(no_barrier_between_rounds, "warps rotate rows that others have not finished",                  \
    orders | reference | detector)                                                                 \
  /* warps.cu */                                                                                   \
  X(no_syncwarp, "a neighbour lane's value is read without __syncwarp()",                          \
    orders | reference | detector)                                                                 \
  X(shuffle_instead_of_syncwarp, "a shuffle is taken to order shared memory", detector)            \
  X(no_syncwarp_before_reuse, "a warp's buffer is written again while lanes read it",              \
    orders | reference | detector)                                                                 \
  X(syncwarp_between_warps, "__syncwarp() for what another warp wrote",                            \
    orders | reference | detector)                                                                 \
  X(full_mask_in_tail, "the full mask where only some lanes are", rules)                           \
  X(mask_without_own_lane, "lanes 16-31 use the mask of lanes 0-15", rules)                        \
  X(shuffle_from_absent_lane, "lanes 0-15 read from lanes that have returned", rules)              \
  X(only_lane_0_has_the_sum, "__shfl_down_sync() and then all lanes use the sum", reference)       \
  X(butterfly_of_half_a_warp, "a butterfly that starts at distance 8", reference)                  \
  X(vote_after_return, "a vote of all lanes after some returned", rules)                           \
  X(shuffles_of_two_branches, "even lanes call one shuffle and odd lanes another", rules)          \
  X(shuffle_of_width_12, "a width that is no power of two", rules)                                 \
  /* copies.cu */                                                                                  \
  X(copy_not_waited_for, "cp.async is never waited for", reference | detector)                     \
  X(copy_not_committed, "cp.async is waited for but not committed", reference | detector)          \
  X(copy_without_barrier, "each thread waits for its copies and reads those of others",            \
    orders | reference | detector)                                                                 \
  X(copy_wait_for_wrong_group, "one group too many may be under way", reference | detector)        \
  X(copy_over_buffer_in_use, "two buffers where three are needed", orders | reference | detector)  \
  X(copy_misaligned, "cp.async of 16 bytes from an address that is a multiple of 4", rules)        \
  X(copy_past_end, "cp.async of a row that has ended", reference | sanitizer | detector)           \
  /* blocks.cu */                                                                                  \
  X(blocks_write_one_place, "parts of the output that overlap", orders | detector)                 \
  X(float_atomics, "a sum by atomicAdd of floats", orders)                                         \
  X(in_place_reads_neighbour, "a filter that works in place", orders | reference | detector)       \
  X(gradient_not_accumulated, "= where += is meant", reference)                                    \
  X(blocks_wait_for_none, "a block uses what another one prepares in the same launch",             \
    orders | detector)                                                                             \
  X(sum_not_started_at_zero, "+= into fresh memory", reference | detector)                         \
  X(odd_element_unwritten, "pairs, and the odd last element is forgotten", reference | detector)   \
  X(scatter_without_order, "two blocks add to one row", detector)                                  \
  X(places_by_arrival, "places handed out by an atomic counter", orders)                           \
  X(rounds_in_one_launch, "blocks rotate rows that others have not finished",                      \
    orders | reference | detector)                                                                 \
  /* numerics.cu */                                                                                \
  X(biased_variance, "divided by n instead of n - 1", reference)                                   \
  X(variance_cancels, "E[x^2] - E[x]^2 far from zero", reference)                                  \
  X(nan_lost, "fmaxf() drops NaN", reference)                                                      \
  X(bf16_truncated, "bits cut off instead of rounded", reference)                                  \
  X(wrong_philox_counter, "the counter counts elements, not words of four", reference)             \
  X(softmax_overflows, "the maximum is not subtracted", reference)                                 \
  X(mean_of_padded_row, "divided by the padded length", reference)                                 \
  X(float_counter_stands_still, "counting on in float beyond 2^24", reference)                     \
  X(gradient_at_the_kink, ">= where > is meant", reference)                                        \
  X(gelu_of_chunks, "GELU of every chunk of a sum, not of the sum", reference)                     \
  X(gelu_slope_of_result, "GELU's derivative at its result", reference)                            \
  /* host.cu */                                                                                    \
  X(host_pointer_to_kernel, "a kernel is given the host's array", detector)                        \
  X(device_pointer_on_host, "the host reads device memory", rules)                                 \
  X(stream_not_waited_for, "a kernel uses what another stream copies", orders)                     \
  X(event_on_wrong_stream, "the event is recorded behind other work", orders)                      \
  X(buffer_reused_on_other_stream, "a buffer is handed on while it is read", orders | reference)   \
  X(result_read_too_early, "an asynchronous copy to the host is not waited for", reference)        \
  X(pinned_overwritten, "a staging buffer is filled again during its copy", reference)             \
  X(slot_refilled_while_read, "the next batch is copied over one that is worked on", orders | reference) \
  X(staging_refilled_too_early, "the batch after next is staged before the copy is done", reference) \
  X(used_after_free, "launched after the memory was released", reference | sanitizer | detector)   \
  X(freed_twice, "cudaFree() twice", rules)                                                        \
  X(freed_in_the_middle, "cudaFree() of an address within a block", rules)                         \
  X(leaked, "device memory is never released", rules)                                              \
  X(copy_longer_than_block, "more bytes than the array has", rules)                                \
  X(copy_in_wrong_direction, "host and device taken for each other", rules)                        \
  X(too_many_threads, "1500 threads a block", rules)                                               \
  X(scratch_asked_for_twice, "two uses of one scratch array", reference)                           \
  X(pageable_copy_in_graph, "a captured copy from memory that is not pinned", rules)               \
  X(wait_in_graph, "the host waits for a stream that is being captured", rules)                    \
  X(graph_of_freed_memory, "a graph is replayed after its memory was released", rules)
// clang-format on

namespace graft::bugs {

#define GRAFT_DECLARE(name, what, noticed_by) Outcome name(bool broken);
GRAFT_KERNEL_BUGS(GRAFT_DECLARE)
#undef GRAFT_DECLARE

}  // namespace graft::bugs
