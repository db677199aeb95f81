// Command detect prints what a detection head finds in a picture.
//
// usage: go run . [-timeout 10s] ADDRESS IMAGE
//
// Package frostlinev1 is what generate.sh makes of the protocol.
package main

import (
	"context"
	_ "embed"
	"flag"
	"fmt"
	"log"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	pb "frostline.example/client/frostlinev1"
)

// serviceConfig waits for a server that is away, and tries again as it says.
//
//go:embed service_config.json
var serviceConfig string

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
	connection, err := grpc.NewClient(address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		return err
	}
	defer connection.Close()
	request := &pb.DetectRequest{Image: &pb.Image{Content: &pb.Image_Encoded{Encoded: picture}}}
	var trailers metadata.MD
	answer, err := pb.NewVisionServiceClient(connection).Detect(ctx, request, grpc.Trailer(&trailers))
	if err != nil {
		return explained(err, trailers)
	}
	for _, found := range answer.GetResult().GetDetections() {
		box := found.GetBbox()
		fmt.Printf("%s %.2f at %.0f,%.0f,%.0f,%.0f\n", found.GetLabel(), found.GetScore(),
			box.GetXMin(), box.GetYMin(), box.GetXMax(), box.GetYMax())
	}
	return nil
}

// explained is the error with the reason that the server gives, and the call's number in its log.
func explained(err error, trailers metadata.MD) error {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			return fmt.Errorf("%w (%s %v, request %s)", err, info.GetReason(), info.GetMetadata(), trailers.Get("x-request-id"))
		}
	}
	return err
}
