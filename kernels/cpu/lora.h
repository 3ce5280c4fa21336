// What LoRA adapters add to a matrix product; lora.cpp computes it, decoder.cpp calls it.
#pragma once

#include <cstdint>

// What an adapter adds to one matrix, in the dtype of x.
struct BmLoraPair {
  const void* down;  // [num_parts * rank, in]; null if the adapter leaves the matrix alone
  const void* up;    // [rank, sum of the parts' widths], multiplied by the adapter's scale
  int rank;
  int num_parts;  // as the product has, or 1 if it has several, but the adapter has one for all
};

// The rows of x and of the product that belong to one adapter.
struct BmLoraRows {
  const BmLoraPair* pair;
  const int64_t* rows;  // no row is in two groups of a call
  long num_rows;
};
