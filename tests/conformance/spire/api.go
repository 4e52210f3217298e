package main

import (
	"fmt"
	"sort"
	"strings"

	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	agentdebugv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/debug/v1"
	delegatedidentityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/delegatedidentity/v1"
	agentloggerv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/logger/v1"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	debugv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/debug/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	localauthorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	loggerv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/logger/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
)

var files = []protoreflect.FileDescriptor{
	agentv1.File_spire_api_server_agent_v1_agent_proto,
	bundlev1.File_spire_api_server_bundle_v1_bundle_proto,
	debugv1.File_spire_api_server_debug_v1_debug_proto,
	entryv1.File_spire_api_server_entry_v1_entry_proto,
	localauthorityv1.File_spire_api_server_localauthority_v1_localauthority_proto,
	loggerv1.File_spire_api_server_logger_v1_logger_proto,
	svidv1.File_spire_api_server_svid_v1_svid_proto,
	trustdomainv1.File_spire_api_server_trustdomain_v1_trustdomain_proto,
	agentdebugv1.File_spire_api_agent_debug_v1_debug_proto,
	agentloggerv1.File_spire_api_agent_logger_v1_logger_proto,
	delegatedidentityv1.File_spire_api_agent_delegatedidentity_v1_delegatedidentity_proto,
	grpc_health_v1.File_grpc_health_v1_health_proto,
}

// usage tells which methods and which fields of requests there are, or which of them are used.
type usage struct {
	Methods []string `json:"methods"`
	Fields  []string `json:"fields"`
}

func eachMethod(visit func(short string, method protoreflect.MethodDescriptor)) {
	for _, file := range files {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				method := service.Methods().Get(j)
				visit(shortName(service)+"/"+string(method.Name()), method)
			}
		}
	}
}

// shortName tells the agent's services from those of the server, two of which have the same name.
func shortName(service protoreflect.ServiceDescriptor) string {
	for _, agents := range []string{"spire.api.agent.", "spire.agent."} {
		if strings.HasPrefix(string(service.FullName()), agents) {
			return "agent:" + string(service.Name())
		}
	}
	return string(service.Name())
}

// methodOf finds a method by its short name, such as Entry/GetEntry.
func methodOf(short string) (found protoreflect.MethodDescriptor, err error) {
	eachMethod(func(name string, method protoreflect.MethodDescriptor) {
		if name == short {
			found = method
		}
	})
	if found == nil {
		return nil, fmt.Errorf("the API has no method %s", short)
	}
	return found, nil
}

func fullName(method protoreflect.MethodDescriptor) string {
	return fmt.Sprintf("/%s/%s", method.Parent().FullName(), method.Name())
}

func newMessage(descriptor protoreflect.MessageDescriptor) (proto.Message, error) {
	kind, err := protoregistry.GlobalTypes.FindMessageByName(descriptor.FullName())
	if err != nil {
		return nil, err
	}
	return kind.New().Interface(), nil
}

func wholeAPI() usage {
	fields := map[string]bool{}
	var out usage
	var walk func(m protoreflect.MessageDescriptor)
	walk = func(m protoreflect.MessageDescriptor) {
		for i := range m.Fields().Len() {
			field := m.Fields().Get(i)
			if fields[string(field.FullName())] {
				continue
			}
			fields[string(field.FullName())] = true
			if inner := field.Message(); inner != nil {
				walk(inner)
			}
		}
	}
	eachMethod(func(name string, method protoreflect.MethodDescriptor) {
		out.Methods = append(out.Methods, name)
		walk(method.Input())
	})
	out.Fields = sorted(fields)
	sort.Strings(out.Methods)
	return out
}

// usedFields adds the full names of all fields that are set in a message, or at least present in a mask or filter.
func usedFields(m protoreflect.Message, into map[string]bool) {
	m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		into[string(field.FullName())] = true
		if field.Message() == nil {
			return true
		}
		if field.IsList() {
			for i := range value.List().Len() {
				usedFields(value.List().Get(i).Message(), into)
			}
		} else if !field.IsMap() {
			usedFields(value.Message(), into)
		}
		return true
	})
}

func sorted(set map[string]bool) []string {
	out := make([]string, 0, len(set))
	for name := range set {
		out = append(out, name)
	}
	sort.Strings(out)
	return out
}

func isMethodPath(call string) bool { return strings.HasPrefix(call, "/") }
