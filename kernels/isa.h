// Which translation unit this is: nvcc's, one of the two vector builds of cpu/vector, or the rest.
//
// Inline code that the vector builds share lives in GRAFT_ISA_NAMESPACE, so that each build has its
// own copy under its own name. Without it the linker could keep the AVX-512 copy of an inline
// function for everybody, and the program would die on a machine that has AVX2 only.
#pragma once

#ifdef GRAFT_ISA
#define GRAFT_ISA_NAMESPACE GRAFT_ISA
#else
#define GRAFT_ISA_NAMESPACE host
#endif

#ifdef __CUDACC__
#define GRAFT_HD __host__ __device__
#else
#define GRAFT_HD
#endif
