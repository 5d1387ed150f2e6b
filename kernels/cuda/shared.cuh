// Shared memory, declared so that the simulated device can provide it too:
//   GRAFT_SHARED(float, tile, [32][33]);         __shared__ float tile[32][33];
//   GRAFT_SHARED(float, total, );                __shared__ float total;
//   GRAFT_DYNAMIC_SHARED(float, rows);           the block's dynamic shared memory as float*
#pragma once

#ifdef GRAFT_SIMT
#include <cuda_runtime.h>
#define GRAFT_SHARED(T, name, extents)            \
  static const char name##_key = 0;               \
  using name##_type = T extents;                  \
  name##_type& name = *static_cast<name##_type*>( \
      ::graft::simt::shared_variable(&name##_key, sizeof(name##_type), 16))
#define GRAFT_DYNAMIC_SHARED(T, name) T* name = static_cast<T*>(::graft::simt::dynamic_shared())
#else
#define GRAFT_SHARED(T, name, extents) __shared__ __align__(16) T name extents
#define GRAFT_DYNAMIC_SHARED(T, name)                                   \
  extern __shared__ __align__(16) unsigned char graft_dynamic_shared[]; \
  T* name = reinterpret_cast<T*>(graft_dynamic_shared)
#endif
