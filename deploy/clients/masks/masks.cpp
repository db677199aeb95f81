// The rows of a mask in COCO's run lengths (Mask.counts).
//
// usage: g++ -std=c++17 masks.cpp && ./a.out HEIGHT WIDTH COUNTS
#include <cstdint>
#include <iostream>
#include <string>
#include <vector>

// decoder
/// Pixels row by row, 0 or 1.
std::vector<uint8_t> decode(const std::string& counts, size_t height, size_t width) {
  std::vector<uint8_t> pixels(height * width);
  std::vector<int64_t> lengths;
  int64_t at = 0, number = 0, shift = 0;
  for (char character : counts) {
    int64_t group = character - 48;
    number |= (group & 31) << shift;
    shift += 5;
    if (group & 32) continue;
    if (group & 16) number -= int64_t{1} << shift;
    if (lengths.size() > 2) number += lengths[lengths.size() - 2];
    for (int64_t end = at + number; at < end; at++) {
      pixels.at(at % height * width + at / height) = lengths.size() % 2;
    }
    lengths.push_back(number);
    number = shift = 0;
  }
  return pixels;
}
// end

int main(int, char** arguments) {
  size_t height = std::stoul(arguments[1]), width = std::stoul(arguments[2]), at = 0;
  for (uint8_t pixel : decode(arguments[3], height, width)) {
    std::cout << int{pixel} << (++at % width ? "" : "\n");
  }
}
