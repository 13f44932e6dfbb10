# data/families.json as a byte array in the library.
set(PEFT_FAMILIES_JSON ${CMAKE_CURRENT_SOURCE_DIR}/data/families.json)
set(PEFT_FAMILIES_CPP ${CMAKE_CURRENT_BINARY_DIR}/generated/families_data.cpp)
add_custom_command(
  OUTPUT ${PEFT_FAMILIES_CPP}
  COMMAND ${CMAKE_COMMAND} -DINPUT=${PEFT_FAMILIES_JSON} -DOUTPUT=${PEFT_FAMILIES_CPP} -P ${CMAKE_CURRENT_SOURCE_DIR}/cmake/embed_file.cmake
  DEPENDS ${PEFT_FAMILIES_JSON} ${CMAKE_CURRENT_SOURCE_DIR}/cmake/embed_file.cmake
  VERBATIM)
add_library(peft_families OBJECT ${PEFT_FAMILIES_CPP})
list(APPEND PEFT_OBJECTS $<TARGET_OBJECTS:peft_families>)
