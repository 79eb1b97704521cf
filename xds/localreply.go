package xds

import (
	"net/http"
	"strings"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	celv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/filters/cel/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"

	"github.com/mrgc/mrgc/internal/api"
)

// deliberate is true of replies whose body is already what the tenant should
// read: a route's direct response, and what the picker answers at once. The
// picker leaves ImmediateResponse.details empty or begins it with "mrgc";
// Envoy's own replies always name their cause.
const deliberate = `response.code_details == "direct_response" || response.code_details == "" || response.code_details.startsWith("mrgc")`

// ownReplies are the answers that Envoy gives by itself, in its own words
// unless they are replaced here.
func ownReplies() []*api.Error {
	return []*api.Error{
		api.Errorf(http.StatusBadRequest, "bad_request", "the request is not valid HTTP or has a header that is not allowed"),
		api.Errorf(http.StatusNotFound, "not_found", "there is nothing at this path"),
		api.Errorf(http.StatusRequestTimeout, "request_timeout", "the request did not arrive in time; send it again"),
		api.Errorf(http.StatusRequestEntityTooLarge, "request_too_large", "the request is larger than this endpoint accepts"),
		api.Errorf(http.StatusRequestHeaderFieldsTooLarge, "headers_too_large", "the request's headers are larger than this endpoint accepts"),
		api.Errorf(http.StatusServiceUnavailable, "unavailable", "no instance can take the request now; try again"),
		api.Errorf(http.StatusGatewayTimeout, "timeout", "the instance did not answer in time; try again"),
	}
}

// localReplies gives every answer of Envoy's own OpenAI's shape. The messages
// are fixed: the cause, which may name addresses, is in the access log.
func localReplies(r *renderer) *hcmv3.LocalReplyConfig {
	out := &hcmv3.LocalReplyConfig{
		Mappers: []*hcmv3.ResponseMapper{{
			Filter:             celFilter(r, deliberate),
			BodyFormatOverride: jsonText("%LOCAL_REPLY_BODY%"),
		}},
		BodyFormat: jsonText(bodyOf(api.Errorf(http.StatusInternalServerError, "gateway_error", "the request could not be served"))),
	}
	for _, reply := range ownReplies() {
		mapper := &hcmv3.ResponseMapper{
			Filter:             statusIs(reply.Status),
			BodyFormatOverride: jsonText(bodyOf(reply)),
		}
		if reply.Status == http.StatusServiceUnavailable {
			mapper.HeadersToAdd = []*corev3.HeaderValueOption{setHeader("Retry-After", "1")}
		}
		out.Mappers = append(out.Mappers, mapper)
	}
	return out
}

func celFilter(r *renderer, expression string) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ExtensionFilter{
		ExtensionFilter: &accesslogv3.ExtensionFilter{
			Name: "envoy.access_loggers.extension_filters.cel",
			ConfigType: &accesslogv3.ExtensionFilter_TypedConfig{
				TypedConfig: r.pack(&celv3.ExpressionFilter{Expression: expression}),
			},
		},
	}}
}

func statusIs(status int) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_StatusCodeFilter{
		StatusCodeFilter: &accesslogv3.StatusCodeFilter{Comparison: &accesslogv3.ComparisonFilter{
			Op: accesslogv3.ComparisonFilter_EQ,
			Value: &corev3.RuntimeUInt32{
				DefaultValue: uint32(status), //nolint:gosec // an HTTP status
				RuntimeKey:   "mrgc.local_reply_status",
			},
		}},
	}}
}

// bodyOf is an error's body as a format string, in which % begins a command.
func bodyOf(e *api.Error) string { return strings.ReplaceAll(string(e.Body()), "%", "%%") }

func jsonText(format string) *corev3.SubstitutionFormatString {
	return &corev3.SubstitutionFormatString{
		ContentType: "application/json",
		Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corev3.DataSource{
			Specifier: &corev3.DataSource_InlineString{InlineString: format},
		}},
	}
}

func setHeader(name, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: name, Value: value},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}
