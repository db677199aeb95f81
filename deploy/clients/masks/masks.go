// Command masks prints the rows of a mask in COCO's run lengths (Mask.counts).
//
// usage: go run masks.go HEIGHT WIDTH COUNTS
package main

import (
	"fmt"
	"os"
	"strconv"
)

// decoder

// decode gives the pixels row by row.
func decode(counts string, height, width int) []byte {
	pixels, lengths, at := make([]byte, height*width), []int{}, 0
	number, shift := 0, 0
	for _, character := range []byte(counts) {
		group := int(character) - 48
		number |= (group & 31) << shift
		shift += 5
		if group&32 != 0 {
			continue
		}
		if group&16 != 0 {
			number -= 1 << shift
		}
		if n := len(lengths); n > 2 {
			number += lengths[n-2]
		}
		for end := at + number; at < end; at++ {
			pixels[at%height*width+at/height] = byte(len(lengths) % 2)
		}
		lengths = append(lengths, number)
		number, shift = 0, 0
	}
	return pixels
}

// end

func main() {
	height, _ := strconv.Atoi(os.Args[1])
	width, _ := strconv.Atoi(os.Args[2])
	for at, pixel := range decode(os.Args[3], height, width) {
		fmt.Print(pixel)
		if at%width == width-1 {
			fmt.Println()
		}
	}
}
