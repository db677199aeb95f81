// Command load runs ghz against a server, one configuration after another, and keeps ghz's HTML reports (latency
// histogram and percentiles) and JSON results.
//
// It is ghz with one thing added: messages are made in binary, each with an image of its own. Equal images would share
// one backbone run, and a load test would measure that.
package main

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"image"
	"image/color"
	"image/jpeg"
	"log"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/bojand/ghz/printer"
	"github.com/bojand/ghz/runner"
	"github.com/jhump/protoreflect/desc"
	"google.golang.org/protobuf/encoding/protowire"
)

// Field numbers of frostline.v1.
const (
	requestImage = 1 // AnalyzeRequest.image
	requestClip  = 2 // AnalyzeRequest.clip
	requestHeads = 3 // AnalyzeRequest.heads
	clipFrames   = 1 // Clip.frames
	imageEncoded = 1 // Image.encoded
)

// What a configuration's name tag "input" may be: the heads of each message, in turn.
var inputs = map[string][][]string{
	"one-head":    {{"objects"}},
	"three-heads": {{"motion", "objects", "scene"}},
	"mixed":       {{"objects"}, {"scene"}, {"objects", "scene"}, {"motion"}},
}

const frames = 8

func main() {
	log.SetFlags(0)
	host := flag.String("host", "", "address of the server")
	protoset := flag.String("protoset", "", "the services' descriptors")
	out := flag.String("out", "", "folder for the reports")
	flag.Parse()
	if err := os.MkdirAll(*out, 0o755); err != nil {
		log.Fatal(err)
	}
	for _, path := range flag.Args() {
		if err := run(path, *host, *protoset, *out); err != nil {
			log.Fatalf("%s: %v", path, err)
		}
	}
}

func run(path, host, protoset, out string) error {
	var config runner.Config
	if err := runner.LoadConfig(path, &config); err != nil {
		return err
	}
	config.Host, config.Protoset = host, protoset
	heads, known := inputs[config.Tags["input"]]
	if !known {
		return fmt.Errorf("tags.input is %q", config.Tags["input"])
	}
	base, err := picture()
	if err != nil {
		return err
	}
	var count atomic.Uint64
	message := func(*desc.MethodDescriptor, *runner.CallData) []byte {
		number := count.Add(1)
		return request(base, number, heads[number%uint64(len(heads))])
	}
	report, err := runner.Run(config.Call, host, runner.WithConfig(&config), runner.WithBinaryDataFunc(message))
	if err != nil {
		return err
	}
	report.Name = config.Name
	name := strings.TrimSuffix(filepath.Base(path), filepath.Ext(path))
	for _, format := range []string{"html", "json"} {
		if err := print(report, format, filepath.Join(out, name+"."+format)); err != nil {
			return err
		}
	}
	fmt.Printf("\n%s\n", config.Name)
	return print(report, "summary", "")
}

// print writes the report to the file, or to standard output.
func print(report *runner.Report, format, path string) error {
	to := os.Stdout
	if path != "" {
		file, err := os.Create(path)
		if err != nil {
			return err
		}
		defer file.Close()
		to = file
	}
	return (&printer.ReportPrinter{Out: to, Report: report}).Print(format)
}

// picture is a JPEG of 640 x 480 pixels.
func picture() ([]byte, error) {
	rgb := image.NewRGBA(image.Rect(0, 0, 640, 480))
	for y := range 480 {
		for x := range 640 {
			rgb.Set(x, y, color.RGBA{uint8(x / 3), uint8(y / 2), uint8((x / 40 * y / 40) * 9), 255})
		}
	}
	var file bytes.Buffer
	err := jpeg.Encode(&file, rgb, &jpeg.Options{Quality: 90})
	return file.Bytes(), err
}

// unlike is the picture with a number in a comment behind its first marker, which makes it another file.
func unlike(base []byte, number uint64) []byte {
	comment := []byte{0xff, 0xfe, 0, 10}
	comment = binary.BigEndian.AppendUint64(comment, number)
	return append(append(append(make([]byte, 0, len(base)+12), base[:2]...), comment...), base[2:]...)
}

// request is an AnalyzeRequest: a clip for a head that reads motion, an image for all others.
func request(base []byte, number uint64, heads []string) []byte {
	var message []byte
	if heads[0] == "motion" {
		var clip []byte
		for frame := range uint64(frames) {
			clip = field(clip, clipFrames, field(nil, imageEncoded, unlike(base, number*frames+frame)))
		}
		message = field(message, requestClip, clip)
	} else {
		message = field(message, requestImage, field(nil, imageEncoded, unlike(base, number*frames)))
	}
	for _, head := range heads {
		message = field(message, requestHeads, []byte(head))
	}
	// ghz takes messages that begin with their length.
	return protowire.AppendBytes(nil, message)
}

func field(to []byte, number protowire.Number, value []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(to, number, protowire.BytesType), value)
}
