import com.google.gson.Gson;
import io.spiffe.bundle.jwtbundle.JwtBundleSet;
import io.spiffe.svid.jwtsvid.JwtSvid;
import io.spiffe.svid.x509svid.X509Svid;
import io.spiffe.svid.x509svid.X509SvidValidator;
import io.spiffe.workloadapi.DefaultWorkloadApiClient;
import io.spiffe.workloadapi.Watcher;
import io.spiffe.workloadapi.WorkloadApiClient;
import io.spiffe.workloadapi.X509Context;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Set;

/**
 * A workload as people write them with java-spiffe; prints JSON lines.
 *
 * <p>{@code Conformance SOCKET fetch | watch | jwt AUDIENCE | validate AUDIENCE TOKEN}
 */
final class Conformance {
    private static final Gson GSON = new Gson();

    private Conformance() {}

    public static void main(String[] args) throws Exception {
        var options = DefaultWorkloadApiClient.ClientOptions.builder().spiffeSocketPath("unix:" + args[0]).build();
        try (WorkloadApiClient client = DefaultWorkloadApiClient.newClient(options)) {
            switch (args[1]) {
                case "fetch" -> say(described(client.fetchX509Context()));
                case "watch" -> watch(client);
                case "jwt" -> tokens(client, args[2]);
                case "validate" -> say(Map.of("id", client.validateJwtSvid(args[3], args[2]).getSpiffeId().toString()));
                default -> throw new IllegalArgumentException("no such verb");
            }
        } catch (Exception error) {
            say(Map.of("error", whole(error)));
            System.exit(1);
        }
        System.exit(0); // gRPC's own threads would go on
    }

    private static synchronized void say(Object value) {
        System.out.println(GSON.toJson(value));
        System.out.flush();
    }

    private static String whole(Throwable error) {
        var text = new StringBuilder();
        for (Throwable cause = error; cause != null; cause = cause.getCause()) {
            text.append(cause).append("; ");
        }
        return text.toString();
    }

    /** What is in a context; every SVID is verified against the bundles that came with it. */
    private static Map<String, Object> described(X509Context context) throws Exception {
        List<Map<String, Object>> svids = new ArrayList<>();
        for (X509Svid svid : context.getX509Svids()) {
            X509SvidValidator.verifyChain(svid.getChain(), context.getX509BundleSet());
            svids.add(Map.of(
                    "id", svid.getSpiffeId().toString(),
                    "hint", String.valueOf(svid.getHint()),
                    "chain", svid.getChain().size(),
                    "not_after", svid.getLeaf().getNotAfter().getTime() / 1000));
        }
        List<String> domains = new ArrayList<>();
        context.getX509BundleSet().getBundles().keySet().forEach(domain -> domains.add(domain.getName()));
        return Map.of("svids", svids, "bundles", domains);
    }

    private static void watch(WorkloadApiClient client) throws Exception {
        client.watchX509Context(new Watcher<>() {
            @Override
            public void onUpdate(X509Context update) {
                try {
                    say(described(update));
                } catch (Exception error) {
                    say(Map.of("error", whole(error)));
                }
            }

            @Override
            public void onError(Throwable error) {
                say(Map.of("watch_error", whole(error)));
            }
        });
        Thread.currentThread().join();
    }

    /** Every token is validated twice: by the agent, and by java-spiffe with the agent's bundles. */
    private static void tokens(WorkloadApiClient client, String audience) throws Exception {
        JwtBundleSet bundles = client.fetchJwtBundles();
        List<Map<String, Object>> svids = new ArrayList<>();
        for (JwtSvid svid : client.fetchJwtSvids(audience)) {
            var byAgent = client.validateJwtSvid(svid.getToken(), audience).getSpiffeId();
            var byUs = JwtSvid.parseAndValidate(svid.getToken(), bundles, Set.of(audience)).getSpiffeId();
            if (!byAgent.equals(byUs)) {
                throw new IllegalStateException(byAgent + " is not " + byUs);
            }
            svids.add(Map.of("id", byUs.toString(), "token", svid.getToken()));
        }
        say(Map.of("svids", svids));
    }
}
