# cmake -DINPUT=file -DOUTPUT=file.cpp -DNAMESPACE=peft::model -DSYMBOL=kFamiliesJson -P embed_file.cmake: the file's bytes as raw
# string literals, in a std::string_view.
file(READ ${INPUT} text)
string(LENGTH "${text}" length)
set(pieces "")
set(position 0)
while(position LESS length)
  string(SUBSTRING "${text}" ${position} 8000 piece)
  string(APPEND pieces "R\"peft_data(${piece})peft_data\"\n")
  math(EXPR position "${position} + 8000")
endwhile()
file(WRITE ${OUTPUT} "#include <string_view>\nnamespace ${NAMESPACE} {\nextern const std::string_view ${SYMBOL};\nconst std::string_view ${SYMBOL} =\n${pieces};\n}\n")
