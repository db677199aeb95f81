"""Packed messages, as grpcio sends and takes them: the answers are those of plain calls."""

import grpc
import numpy
import pytest


@pytest.fixture(scope="module")
def image(proto):
    height, width = 480, 640
    y, x = numpy.mgrid[:height, :width]
    rgb = numpy.stack([x % 256, y % 256, (x + y) % 256], axis=-1).astype(numpy.uint8)
    return proto.types.Image(raw=proto.types.RawImage(width=width, height=height, rgb=rgb.tobytes()))


@pytest.mark.parametrize("method", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_a_channel_that_packs(server, proto, vision, image, method):
    request = proto.vision.ExtractFeaturesRequest(image=image)
    plain = vision.ExtractFeatures(request)
    options = [("grpc.max_receive_message_length", 256 << 20)]
    with grpc.insecure_channel(server, options=options, compression=method) as channel:
        packed = proto.services.VisionServiceStub(channel)
        if method == grpc.Compression.Deflate:
            # Not taken, and said so; the client is told what is.
            with pytest.raises(grpc.RpcError) as refused:
                packed.ExtractFeatures(request)
            assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
            assert "gzip" in refused.value.details()
            return
        answer, call = packed.ExtractFeatures.with_call(request)
        assert dict(call.initial_metadata()).get("x-request-id")
        assert answer.maps == plain.maps
        found = packed.Detect(proto.vision.DetectRequest(image=image))
        assert found.result == vision.Detect(proto.vision.DetectRequest(image=image)).result


def test_one_call_that_packs(proto, vision, image):
    request = proto.vision.SegmentRequest(image=image)
    packed = vision.Segment(request, compression=grpc.Compression.Gzip)
    assert packed.result == vision.Segment(request).result
