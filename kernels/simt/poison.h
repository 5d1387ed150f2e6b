// AddressSanitizer's marks on memory that nobody may touch; nothing in builds without it.
#pragma once

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define __asan_poison_memory_region(data, bytes) ((void)(data), (void)(bytes))
#define __asan_unpoison_memory_region(data, bytes) ((void)(data), (void)(bytes))
#endif
