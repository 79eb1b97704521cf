package extproc_test

import (
	"context"
	"io"

	accesslogdatav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
)

type accessLogCommon = accesslogdatav3.AccessLogCommon

// logType makes an entry one of another type, by its name in the protocol.
func logType(name string) func(*accessLogCommon) {
	return func(c *accessLogCommon) {
		c.AccessLogType = accesslogdatav3.AccessLogType(accesslogdatav3.AccessLogType_value[name])
	}
}

// memoryStream is a stream without gRPC: it gives the messages, then ends.
type memoryStream struct {
	grpc.ServerStream
	messages []*extprocv3.ProcessingRequest
	sendErr  error
	ctx      context.Context // nil: one that does not end
	last     *extprocv3.ProcessingResponse
}

func (s *memoryStream) Context() context.Context {
	if s.ctx != nil {
		return s.ctx
	}
	return context.Background()
}

func (s *memoryStream) Recv() (*extprocv3.ProcessingRequest, error) {
	if len(s.messages) == 0 {
		return nil, io.EOF
	}
	next := s.messages[0]
	s.messages = s.messages[1:]
	return next, nil
}

func (s *memoryStream) Send(answer *extprocv3.ProcessingResponse) error {
	s.last = answer
	return s.sendErr
}
