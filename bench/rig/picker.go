package rig

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	accesslogdatav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"

	"github.com/mrgc/mrgc/extproc"
	"github.com/mrgc/mrgc/internal/api"
)

// Sealed are the headers of a sealed request by which a picker goes.
type Sealed struct {
	ID, Tenant, Size string
	Recipients       []string
}

// AskPicker asks a picker as Envoy asks it, without the wire: for the address that a
// request is to go to first, or when to ask again.
func AskPicker(picker *extproc.Picker, r Sealed) (address string, retryAfter time.Duration, err error) {
	s := &question{message: &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestHeaders{
		RequestHeaders: &extprocv3.HttpHeaders{Headers: &corev3.HeaderMap{Headers: []*corev3.HeaderValue{
			header("content-type", api.ContentTypeSealedRequest), header("authorization", "Bearer x"), header(api.HeaderModel, Model),
			header(api.HeaderRecipients, strings.Join(r.Recipients, ",")), header(api.HeaderSize, r.Size),
			header("x-request-id", r.ID), header(api.HeaderRequestID, r.ID), header(api.HeaderTenant, r.Tenant),
		}}},
	}}}
	if err := picker.Process(s); err != nil {
		return "", 0, err
	}
	if refusal := s.answer.GetImmediateResponse(); refusal != nil {
		for _, h := range refusal.GetHeaders().GetSetHeaders() {
			if h.GetHeader().GetKey() == "retry-after" {
				seconds, err := strconv.Atoi(string(h.GetHeader().GetRawValue()))
				return "", time.Duration(seconds) * time.Second, err
			}
		}
		return "", 0, fmt.Errorf("refused: %s", refusal.GetBody())
	}
	destination := s.answer.GetDynamicMetadata().GetFields()["envoy.lb"].GetStructValue().GetFields()["x-gateway-destination-endpoint"].GetStringValue()
	address, _, _ = strings.Cut(destination, ",")
	return address, 0, nil
}

// Log is Envoy's access log at a picker, without the wire.
type Log struct {
	grpc.ServerStream
	entries chan *accesslogv3.StreamAccessLogsMessage
	read    chan struct{} // one for each time that the picker has done with what it was told
	ended   chan error
}

// OpenLog opens one, which is to be closed.
func OpenLog(picker *extproc.Picker) *Log {
	l := &Log{entries: make(chan *accesslogv3.StreamAccessLogsMessage), read: make(chan struct{}), ended: make(chan error, 1)}
	go func() { l.ended <- picker.StreamAccessLogs(l) }()
	<-l.read
	return l
}

// End says that a request has ended, and waits until the picker knows.
func (l *Log) End(id string) error {
	entry := &accesslogdatav3.HTTPAccessLogEntry{
		CommonProperties: &accesslogdatav3.AccessLogCommon{AccessLogType: accesslogdatav3.AccessLogType_DownstreamEnd},
		Request:          &accesslogdatav3.HTTPRequestProperties{RequestId: id},
	}
	l.entries <- &accesslogv3.StreamAccessLogsMessage{LogEntries: &accesslogv3.StreamAccessLogsMessage_HttpLogs{
		HttpLogs: &accesslogv3.StreamAccessLogsMessage_HTTPAccessLogEntries{LogEntry: []*accesslogdatav3.HTTPAccessLogEntry{entry}},
	}}
	select {
	case <-l.read:
		return nil
	case err := <-l.ended:
		return fmt.Errorf("the picker has closed Envoy's log: %w", err)
	}
}

// Close closes it in good order.
func (l *Log) Close() {
	close(l.entries)
	<-l.ended
}

// Recv is the picker's.
func (l *Log) Recv() (*accesslogv3.StreamAccessLogsMessage, error) {
	l.read <- struct{}{}
	if message, open := <-l.entries; open {
		return message, nil
	}
	return nil, io.EOF
}

// SendAndClose is the picker's.
func (l *Log) SendAndClose(*accesslogv3.StreamAccessLogsResponse) error { return nil }

func header(name, value string) *corev3.HeaderValue {
	return &corev3.HeaderValue{Key: name, RawValue: []byte(value)}
}

// question is the stream of one request.
type question struct {
	grpc.ServerStream
	message *extprocv3.ProcessingRequest // nil once it was read
	answer  *extprocv3.ProcessingResponse
}

func (q *question) Context() context.Context { return context.Background() }

func (q *question) Recv() (*extprocv3.ProcessingRequest, error) {
	message := q.message
	if message == nil {
		return nil, io.EOF
	}
	q.message = nil
	return message, nil
}

func (q *question) Send(answer *extprocv3.ProcessingResponse) error {
	q.answer = answer
	return nil
}
