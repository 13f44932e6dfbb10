# The tables of data/ as byte arrays in the library: file, name of the array, its namespace.
set(PEFT_TABLE_SOURCES)
foreach(table "families|kFamiliesJson|peft::model" "module_trees|kModuleTreesJson|peft::model" "gguf_names|kGgufNamesJson|peft::model"
        "engines|kEnginesJson|peft::engines")
  string(REPLACE "|" ";" table "${table}")
  list(GET table 0 stem)
  list(GET table 1 name)
  list(GET table 2 namespace)
  set(input ${CMAKE_CURRENT_SOURCE_DIR}/data/${stem}.json)
  set(output ${CMAKE_CURRENT_BINARY_DIR}/generated/${stem}_data.cpp)
  add_custom_command(
    OUTPUT ${output}
    COMMAND ${CMAKE_COMMAND} -DINPUT=${input} -DOUTPUT=${output} -DNAMESPACE=${namespace} -DSYMBOL=${name} -P ${CMAKE_CURRENT_SOURCE_DIR}/cmake/embed_file.cmake
    DEPENDS ${input} ${CMAKE_CURRENT_SOURCE_DIR}/cmake/embed_file.cmake
    VERBATIM)
  list(APPEND PEFT_TABLE_SOURCES ${output})
endforeach()
add_library(peft_families OBJECT ${PEFT_TABLE_SOURCES})
list(APPEND PEFT_OBJECTS $<TARGET_OBJECTS:peft_families>)
