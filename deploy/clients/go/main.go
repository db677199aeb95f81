// Command detect prints what a detection head finds in a picture.
//
// usage: go run . [-timeout 10s] ADDRESS IMAGE
//
// Run generate.sh once before: it writes package frostlinev1.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	pb "frostline.example/client/frostlinev1"
)

func main() {
	timeout := flag.Duration("timeout", 10*time.Second, "how long to wait, retries included")
	flag.Parse()
	log.SetFlags(0)
	if flag.NArg() != 2 {
		log.Fatal("usage: detect [-timeout 10s] ADDRESS IMAGE")
	}
	ctx, cancel := context.WithTimeout(context.Background(), *timeout)
	defer cancel()
	if err := detect(ctx, flag.Arg(0), flag.Arg(1)); err != nil {
		log.Fatal(err)
	}
}

func detect(ctx context.Context, address, path string) error {
	picture, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	request := &pb.DetectRequest{Image: &pb.Image{Content: &pb.Image_Encoded{Encoded: picture}}}
	answer, err := patiently(ctx, func() (*pb.DetectResponse, error) {
		return pb.NewVisionServiceClient(connection).Detect(ctx, request)
	})
	if err != nil {
		return err
	}
	for _, found := range answer.GetResult().GetDetections() {
		box := found.GetBbox()
		fmt.Printf("%s %.2f at %.0f,%.0f,%.0f,%.0f\n", found.GetLabel(), found.GetScore(),
			box.GetXMin(), box.GetYMin(), box.GetXMax(), box.GetYMax())
	}
	return nil
}

// patiently repeats a call that a full server refused, after the time that the server names.
func patiently[T any](ctx context.Context, call func() (T, error)) (T, error) {
	for {
		answer, err := call()
		delay, again := retryAfter(err)
		if !again {
			return answer, err
		}
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return answer, err
		}
	}
}

func retryAfter(err error) (time.Duration, bool) {
	if status.Code(err) != codes.ResourceExhausted {
		return 0, false
	}
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			return info.GetRetryDelay().AsDuration(), true
		}
	}
	return 0, false
}
