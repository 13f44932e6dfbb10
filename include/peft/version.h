/* The version of these headers, and how functions of the library are exported. For C and C++. */
#ifndef PEFT_VERSION_H
#define PEFT_VERSION_H

#define PEFT_VERSION_MAJOR 0
#define PEFT_VERSION_MINOR 1
#define PEFT_VERSION_PATCH 0
#define PEFT_VERSION "0.1.0"

/* A shared library that hides its symbols (-fvisibility=hidden) still shows these. */
#if defined(__GNUC__) || defined(__clang__)
#define PEFT_API __attribute__((visibility("default")))
#else
#define PEFT_API
#endif

#endif
