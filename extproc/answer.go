package extproc

import (
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/mrgc/mrgc/internal/api"
)

// metadataNamespace is where Envoy's override_host policy finds the pick in a
// request's dynamic metadata, under the key metadataKey.
const metadataNamespace = "envoy.lb"

// metadataKey is the key of the pick within metadataNamespace, and in lower
// case the name of the header that repeats it.
const metadataKey = "x-gateway-destination-endpoint"

var headerUncached = strings.ToLower(api.HeaderUncached)

// steer lets a request go on to one of the addresses of destination, and tells
// the instance of how many tokens of the prompt it is expected to read anew. The
// first header repeats the pick for access logs; nothing decides by it. Both
// overwrite whatever the client sent under their names.
func steer(destination string, uncachedTokens int) *extprocv3.ProcessingResponse {
	return &extprocv3.ProcessingResponse{
		Response: &extprocv3.ProcessingResponse_RequestHeaders{RequestHeaders: &extprocv3.HeadersResponse{
			Response: &extprocv3.CommonResponse{HeaderMutation: &extprocv3.HeaderMutation{
				SetHeaders: []*corev3.HeaderValueOption{
					setHeader(metadataKey, destination), setHeader(headerUncached, strconv.Itoa(uncachedTokens)),
				},
			}},
		}},
		DynamicMetadata: &structpb.Struct{Fields: map[string]*structpb.Value{
			metadataNamespace: structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{
				metadataKey: structpb.NewStringValue(destination),
			}}),
		}},
	}
}

// refuse answers a request in the instances' stead.
func refuse(e *api.Error) *extprocv3.ProcessingResponse {
	headers := []*corev3.HeaderValueOption{setHeader("content-type", "application/json")}
	if e.RetryAfter > 0 {
		seconds := int((e.RetryAfter + time.Second - 1) / time.Second)
		headers = append(headers, setHeader("retry-after", strconv.Itoa(seconds)))
	}
	if e.Code == codeStaleRecipients {
		headers = append(headers, setHeader(strings.ToLower(api.HeaderKeyStatus), api.KeyStatusStale))
	}
	return &extprocv3.ProcessingResponse{
		Response: &extprocv3.ProcessingResponse_ImmediateResponse{ImmediateResponse: &extprocv3.ImmediateResponse{
			Status:  &typev3.HttpStatus{Code: typev3.StatusCode(e.Status)}, //nolint:gosec // a status has three digits
			Headers: &extprocv3.HeaderMutation{SetHeaders: headers},
			Body:    e.Body(),
			Details: "mrgc_" + e.Code, // %RESPONSE_CODE_DETAILS% in Envoy's logs
		}},
	}
}

// setHeader writes raw_value, the only field that Envoy reads here.
func setHeader(name, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: name, RawValue: []byte(value)},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}

// proceed lets a message pass that the picker did not ask for; nil for one that
// wants no answer.
func proceed(message *extprocv3.ProcessingRequest) *extprocv3.ProcessingResponse {
	switch message.GetRequest().(type) {
	case *extprocv3.ProcessingRequest_ResponseHeaders:
		return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseHeaders{
			ResponseHeaders: &extprocv3.HeadersResponse{Response: &extprocv3.CommonResponse{}},
		}}
	case *extprocv3.ProcessingRequest_RequestBody:
		return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestBody{
			RequestBody: &extprocv3.BodyResponse{Response: &extprocv3.CommonResponse{}},
		}}
	case *extprocv3.ProcessingRequest_ResponseBody:
		return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseBody{
			ResponseBody: &extprocv3.BodyResponse{Response: &extprocv3.CommonResponse{}},
		}}
	case *extprocv3.ProcessingRequest_RequestTrailers:
		return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestTrailers{
			RequestTrailers: &extprocv3.TrailersResponse{},
		}}
	case *extprocv3.ProcessingRequest_ResponseTrailers:
		return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseTrailers{
			ResponseTrailers: &extprocv3.TrailersResponse{},
		}}
	}
	return nil
}
