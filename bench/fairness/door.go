package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	accesslogdatav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"

	"github.com/mrgc/mrgc/bench/rig"
	"github.com/mrgc/mrgc/extproc"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
	"github.com/mrgc/mrgc/internal/size"
	"github.com/mrgc/mrgc/internal/tenant"
)

// door is a router's picker, asked as Envoy asks it, without the wire.
type door struct {
	picker    *extproc.Picker
	addresses []string
	headers   []*corev3.HeaderValue // of every request
}

func newDoor(w *world) (*door, error) {
	d := &door{}
	var instances []*fleet.Instance
	var keys []string
	for i := range engines {
		in := &fleet.Instance{
			ID: rig.InstanceID(i), Region: rig.Region, Address: fmt.Sprintf("10.0.0.%d:8080", i),
			Models: []string{rig.Model}, KeyIDs: []string{rig.KeyID(i)},
			Health: fleet.Health{Enclave: true, Engine: true}, Load: fleet.Load{Slots: slots}, HeartbeatAt: w.time(),
		}
		instances = append(instances, in)
		d.addresses = append(d.addresses, in.Address)
		keys = append(keys, in.KeyIDs...)
	}
	snapshot := fleet.NewSnapshot(w.time(), instances)
	weights := map[string]int{}
	for _, l := range w.loads {
		weights[l.tenant] = l.weight
	}
	var err error
	d.picker, err = extproc.New(extproc.Config{
		Region: rig.Region, View: func() *fleet.Snapshot { return snapshot }, Settings: extproc.Settings{StaleAfter: time.Hour}, Now: w.time,
		Admit: func(name string, _ []byte, _ time.Time) (*tenant.Tenant, error) {
			return &tenant.Tenant{Name: name, Limits: tenant.Limits{Weight: weights[name]}}, nil
		},
		Report: func(in *fleet.Instance) routing.Report {
			p := &w.parents[slices.Index(d.addresses, in.Address)]
			report := p.report
			report.Since = w.now - p.at
			return report
		},
	})
	d.headers = []*corev3.HeaderValue{
		header("content-type", api.ContentTypeSealedRequest), header("authorization", "Bearer x"), header(api.HeaderModel, rig.Model),
		header(api.HeaderRecipients, strings.Join(keys, ",")), header(api.HeaderSize, size.Round(promptSize, outputSize).String()),
	}
	return d, err
}

func header(name, value string) *corev3.HeaderValue {
	return &corev3.HeaderValue{Key: name, RawValue: []byte(value)}
}

// ask gives the engine that a request is to go to, or when to ask again.
func (d *door) ask(id, tenant string) (engine int, retryAfter time.Duration, err error) {
	d.headers[1] = header("authorization", "Bearer x") // the picker wipes it
	headers := append(slices.Clip(d.headers), header("x-request-id", id), header(api.HeaderRequestID, id), header(api.HeaderTenant, tenant))
	s := &question{message: &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestHeaders{
		RequestHeaders: &extprocv3.HttpHeaders{Headers: &corev3.HeaderMap{Headers: headers}},
	}}}
	if err := d.picker.Process(s); err != nil {
		return 0, 0, err
	}
	if refusal := s.answer.GetImmediateResponse(); refusal != nil {
		for _, h := range refusal.GetHeaders().GetSetHeaders() {
			if h.GetHeader().GetKey() == "retry-after" {
				seconds, err := strconv.Atoi(string(h.GetHeader().GetRawValue()))
				return 0, time.Duration(seconds) * time.Second, err
			}
		}
		return 0, 0, fmt.Errorf("refused: %s", refusal.GetBody())
	}
	destination := s.answer.GetDynamicMetadata().GetFields()["envoy.lb"].GetStructValue().GetFields()["x-gateway-destination-endpoint"].GetStringValue()
	best, _, _ := strings.Cut(destination, ",")
	if engine = slices.Index(d.addresses, best); engine < 0 {
		return 0, 0, fmt.Errorf("picked %q, which is no engine", destination)
	}
	return engine, 0, nil
}

// ended tells the picker that a request has.
func (d *door) ended(id string) error {
	return d.picker.StreamAccessLogs(&entry{message: &accesslogv3.StreamAccessLogsMessage{
		LogEntries: &accesslogv3.StreamAccessLogsMessage_HttpLogs{HttpLogs: &accesslogv3.StreamAccessLogsMessage_HTTPAccessLogEntries{
			LogEntry: []*accesslogdatav3.HTTPAccessLogEntry{{
				CommonProperties: &accesslogdatav3.AccessLogCommon{AccessLogType: accesslogdatav3.AccessLogType_DownstreamEnd},
				Request:          &accesslogdatav3.HTTPRequestProperties{RequestId: id},
			}},
		}},
	}})
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

// entry is a stream of one message of Envoy's log.
type entry struct {
	grpc.ServerStream
	message *accesslogv3.StreamAccessLogsMessage // nil once it was read
}

func (e *entry) Recv() (*accesslogv3.StreamAccessLogsMessage, error) {
	message := e.message
	if message == nil {
		return nil, io.EOF
	}
	e.message = nil
	return message, nil
}

func (e *entry) SendAndClose(*accesslogv3.StreamAccessLogsResponse) error { return nil }
