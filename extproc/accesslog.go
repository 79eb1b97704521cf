package extproc

import (
	"errors"
	"io"

	accesslogdatav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	"google.golang.org/grpc"
)

// StreamAccessLogs learns from Envoy's access log which requests have ended. A
// request counts for the instance that it was picked for, also when a retry
// moved it: where it ended does not matter to where it is taken off.
func (p *Picker) StreamAccessLogs(stream grpc.ClientStreamingServer[accesslogv3.StreamAccessLogsMessage, accesslogv3.StreamAccessLogsResponse]) error {
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return stream.SendAndClose(&accesslogv3.StreamAccessLogsResponse{})
		}
		if err != nil {
			return err // gRPC's own: Envoy has gone, and connects again by itself
		}
		for _, entry := range message.GetHttpLogs().GetLogEntry() {
			if isEnd(entry.GetCommonProperties()) {
				p.inFlight.Done(entry.GetRequest().GetRequestId())
			}
		}
	}
}

// isEnd says whether an entry marks the end of the tenant's request, and not
// its start, a moment in between, or the end of one attempt upstream.
func isEnd(c *accesslogdatav3.AccessLogCommon) bool {
	switch c.GetAccessLogType() {
	case accesslogdatav3.AccessLogType_NotSet, accesslogdatav3.AccessLogType_DownstreamEnd:
		return true
	}
	return false
}
